"""The cost of a checkpoint for a training that waits for it, and for one that saves asynchronously."""

import os
import time
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.save import Saver
from ..core.config import PretrainConfig
from ..core.files import sync
from ..resilience.stop_signal import StopSignal
from ..training.pretrain import Pretraining
from .summary import SPREAD_COLUMNS, format_table, spread
from .synthetic_run import random_batch, share_of_rank, shared_folder, start_run

STEPS = 5  # per turn, with no checkpoint being written
BLOCK = 1 << 20


def measure(config: PretrainConfig, rounds: int, folder: Path | None) -> dict[str, Any]:
    """Seconds that a checkpoint adds to a training that waits for it, those that an asynchronous one adds, and those of
    a plain write of as many bytes. They take turns. An asynchronous checkpoint adds the time in which the training
    stands still, and the time by which its steps are slower. All ranks call this; temporary files go into `folder`.

    Raises ValueError if the configuration asks for what cannot run here.
    """
    config, world, selection = start_run(config)
    trainer = Pretraining(config, world, selection.ops())
    batch = share_of_rank(random_batch(config), world)
    stop, step, turns = StopSignal(), 0, []

    def steps(enough: int = 0) -> tuple[int, float]:
        """Takes so many steps, or with 0 as long as some rank writes -> how many, and their seconds."""
        nonlocal step
        begin, first = time.perf_counter(), step
        while True:
            trainer.step(step, batch)
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            step += 1
            writing = stop.agree(saver.is_writing)[1]
            if step - first >= enough if enough else not writing:
                return step - first, time.perf_counter() - begin

    with shared_folder(folder, "bench-save-") as path, Saver(path, trainer.roles, {}, keep=1) as saver:
        for turn in range(rounds + 1):  # the first compiles
            alone = steps(STEPS)[1] / STEPS
            begin = time.perf_counter()
            saver.begin(step)
            saver.finish()
            waiting = time.perf_counter() - begin
            size = sum(file.stat().st_size for file in path.rglob("*.safetensors"))
            steps(1)
            begin = time.perf_counter()
            saver.begin(step, in_background=True)
            still = time.perf_counter() - begin
            count, seconds = steps()
            begin = time.perf_counter()
            saver.finish()
            still += time.perf_counter() - begin
            longer = max(0.0, seconds - count * alone)
            plain = _write(path / "plain", size) if world.rank == 0 else 0.0
            torch.distributed.barrier()
            if turn:
                added = still + longer
                turns.append({"waiting": waiting, "async": added, "still": still, "steps": count, "step": alone})
                turns[-1] |= {"plain": plain, "ratio": added / waiting, "bytes": size}
    trainer.engine.destroy()
    return {"ranks": world.ranks, "turns": turns}


def _write(file: Path, size: int) -> float:
    """Writes so many bytes and waits until they are on the disk -> seconds."""
    block = os.urandom(BLOCK)
    begin = time.perf_counter()
    with file.open("wb", buffering=0) as handle:
        for _ in range(-(-size // BLOCK)):
            handle.write(block)
    sync(file)
    seconds = time.perf_counter() - begin
    file.unlink()
    return seconds


ROWS = {
    "step": "a step alone, s",
    "plain": "a plain write and `fsync` of the bytes, s",
    "waiting": "a checkpoint that training waits for, s",
    "async": "added by an asynchronous one, s",
    "still": "of it standing still, s",
    "steps": "steps taken meanwhile",
    "ratio": "added, asynchronous / waiting",
}


def summary_lines(result: dict[str, Any]) -> list[str]:
    turns = result["turns"]
    size = f"{result['ranks']} ranks, {turns[0]['bytes'] / 1e6:.0f} MB per checkpoint, {len(turns)} turns"
    rows = [{"name": name, **spread(turn[key] for turn in turns)} for key, name in ROWS.items()]
    return [size, *format_table(rows, SPREAD_COLUMNS)]
