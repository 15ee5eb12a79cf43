"""What a save costs a training that waits for it, and one that goes on beside it."""

import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.save import Saver
from ..core.config import PretrainConfig
from ..core.files import sync
from ..core.hardware import describe, description_lines
from ..engine import kernel_selection, zero
from ..resilience.stop_signal import StopSignal
from ..training.pretrain import Pretraining
from .train import random_batch, shared_folder, without_weights

STEPS = 5  # alone, in a turn
BLOCK = 1 << 20


def save(config: PretrainConfig, rounds: int, folder: Path | None) -> dict[str, Any]:
    """Seconds that one checkpoint adds to a training that waits for it, and to one that goes on meanwhile; and those of
    a plain write of as many bytes. They take turns. What is added beside the training: the time in which it stood
    still, and what its steps took longer. All ranks call this; `folder` is where the files lie for a time.

    Raises ValueError where the configuration asks for what cannot run here.
    """
    kernel_selection.check(config.kernels, config.training.precision, config.model)
    config = without_weights(config)
    world = zero.init_process_group(config.training.cpu_threads)
    task = Pretraining(config, world, kernel_selection.chosen(config, world, config.training.precision).ops())
    batch = random_batch(config)
    batch = batch.split(len(batch) // world.ranks)[world.rank]
    stop, step, turns = StopSignal(), 0, []

    def steps(enough: int = 0) -> tuple[int, float]:
        """So many, or as long as some rank writes: how many, and their seconds."""
        nonlocal step
        begin, first = time.perf_counter(), step
        while True:
            task.step(step, batch)
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            step += 1
            writing = stop.agree(saver.is_writing)[1]
            if step - first >= enough if enough else not writing:
                return step - first, time.perf_counter() - begin

    with shared_folder(folder, "bench-save-") as place, Saver(place, task.roles, {}, keep=1) as saver:
        for turn in range(rounds + 1):  # the first compiles
            alone = steps(STEPS)[1] / STEPS
            begin = time.perf_counter()
            saver.begin(step)
            saver.finish()
            waiting = time.perf_counter() - begin
            size = sum(file.stat().st_size for file in place.rglob("*.safetensors"))
            steps(1)
            begin = time.perf_counter()
            saver.begin(step, in_background=True)
            still = time.perf_counter() - begin
            count, seconds = steps()
            begin = time.perf_counter()
            saver.finish()
            still += time.perf_counter() - begin
            longer = max(0.0, seconds - count * alone)
            plain = _written(place / "plain", size) if world.rank == 0 else 0.0
            torch.distributed.barrier()
            if turn:
                added = still + longer
                turns.append({"waiting": waiting, "beside": added, "still": still, "steps": count, "step": alone})
                turns[-1] |= {"plain": plain, "ratio": added / waiting, "bytes": size}
    task.engine.destroy()
    return {"host": describe(), "ranks": world.ranks, "turns": turns}


def _written(file: Path, size: int) -> float:
    """Seconds to write so many bytes and wait until they are on the disk."""
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
    "waiting": "a save that training waits for, s",
    "beside": "what a save beside it adds, s",
    "still": "of it standing still, s",
    "steps": "steps made meanwhile",
    "ratio": "added, beside / waiting",
}


def table(result: dict[str, Any]) -> list[str]:
    """Medians, lowest and highest."""
    turns = result["turns"]
    size = f"{result['ranks']} ranks, {turns[0]['bytes'] / 1e6:.0f} MB a checkpoint, {len(turns)} turns"
    lines = [*description_lines(result["host"]), size, "", "| | median (lowest to highest) |", "|---|---|"]
    for key, name in ROWS.items():
        values = [turn[key] for turn in turns]
        lines.append(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) |")
    return lines
