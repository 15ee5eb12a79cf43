"""Measure how fast sounds are scored in one pass, from files to features, against the networks alone."""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import save_file
from torch import nn

from audiox_trainer.models.scorers import panns, passt, vggish
from audiox_trainer.trainer.benchmarks.summary import spread
from audiox_trainer.trainer.core.english import amount
from audiox_trainer.trainer.scorers.build import build_scorers
from audiox_trainer.trainer.scorers.scorer import Scorer
from audiox_trainer.trainer.scorers.scoring import BLOCK, READERS, SoundScoring
from audiox_trainer.trainer.scorers.sound_file import ReadSound, read_sound

CLOCKS = ("wall", "cpu")
RATE = 44_100  # Hz of the sounds, in stereo and 16 bits
RANDOM: dict[str, Callable[[], nn.Module]] = {  # networks of the released sizes
    "panns": lambda: panns.Cnn14(panns.FRONT_ENDS[1024]),
    "passt": passt.Passt,
    "vggish": vggish.VggishNetwork,
}


def measure(file: Path | None, random: Sequence[str], clips: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Seconds per clip of a pass over `clips` sounds that are made for this, of each network on the same sounds in
    memory, and of reading alone, by as many threads as a pass has. In every round a share of the clips is scored, with
    a new cache, next to as many by the networks.

    `random`: networks with random weights of the released sizes, in place of a `file` of scorers.

    Raises ValueError as `build_scorers`, where a round would have no clip, and where clips are too short.
    """
    if rounds > clips:
        raise ValueError(f"--rounds {rounds}: more than the {amount(clips, 'clip')} that they share")
    with tempfile.TemporaryDirectory(prefix="bench-scorers-") as temporary:
        folder = Path(temporary)
        scorers, _ = build_scorers(file or _random_scorers(folder, list(dict.fromkeys(random))))
        shortest = max(scorer.shortest for scorer in scorers)
        if seconds < shortest:
            raise ValueError(f"--seconds {seconds:g}: too short, the scorers need {shortest:g}")
        paths = _made_sounds(folder / "sounds", clips, seconds)
        read = partial(
            read_sound,
            rates={scorer.rate for scorer in scorers},
            shortest=shortest,
            pad_to=0.0,
        )
        in_memory = [read(path) for path in paths[:BLOCK]]
        for scorer in scorers:  # its first call may compile, or choose algorithms
            _features(scorer, in_memory, 1)
        shares = [paths[number::rounds] for number in range(rounds)]
        rows = [_round(share, scorers, folder / f"cache-{i}", in_memory, read) for i, share in enumerate(shares)]
    per_clip = {name: {c: spread(row[name][c] for row in rows) for c in CLOCKS} for name in rows[0]}
    return {
        "clips": clips,
        "clip_seconds": seconds,
        "threads": torch.get_num_threads(),
        "seconds_per_clip": per_clip,
        "of_networks_speed": {c: spread(row["networks"][c] / row["pass"][c] for row in rows) for c in CLOCKS},
    }


def summary_lines(result: dict[str, Any]) -> list[str]:
    per_clip = result["seconds_per_clip"]
    lines = [
        f"{name}: {1000 * row['wall']['median']:.1f} ms per clip ({1000 * row['wall']['low']:.1f} to "
        f"{1000 * row['wall']['high']:.1f}), of processor time {1000 * row['cpu']['median']:.1f}"
        for name, row in per_clip.items()
    ]
    wall, cpu = (result["of_networks_speed"][clock] for clock in CLOCKS)
    speed = f"{wall['median']:.2f} of the networks' own speed ({wall['low']:.2f} to {wall['high']:.2f})"
    whole = per_clip["pass"]["wall"]["median"]
    rate = f"one pass: {1 / whole:.2f} clips/s, {speed}, by processor time {cpu['median']:.2f}"
    return [*lines, rate, f"10,000 clips: {10_000 * whole / 3600:.1f} h at this speed"]


def _round(
    paths: Sequence[Path],
    scorers: Sequence[Scorer],
    cache: Path,
    in_memory: Sequence[ReadSound],
    read: Callable[[Path], ReadSound],
) -> dict[str, dict[str, float]]:
    """Seconds per clip by the clock and of all processors."""
    scoring = SoundScoring(paths, scorers, cache)
    found = {"pass": _seconds(scoring.run, len(paths))}
    alone = {s.name: _seconds(partial(_features, s, in_memory, len(paths)), len(paths)) for s in scorers}
    with ThreadPoolExecutor(READERS) as pool:
        found["reading"] = _seconds(lambda: list(pool.map(read, paths)), len(paths))
    total = {clock: sum(times[clock] for times in alone.values()) for clock in CLOCKS}
    return found | alone | {"networks": total}


def _random_scorers(folder: Path, kinds: Sequence[str]) -> Path:
    """A file of scorers with random weights."""
    torch.manual_seed(0)
    for kind in kinds:
        (folder / kind).mkdir()
        save_file(RANDOM[kind]().state_dict(), folder / kind / "model.safetensors")
    path = folder / "scorers.json"
    path.write_text(json.dumps({"scorers": [{"kind": kind, "weights": kind} for kind in kinds]}))
    return path


def _made_sounds(folder: Path, clips: int, seconds: float) -> list[Path]:
    """Pieces of one noise, so that no two are alike."""
    folder.mkdir()
    samples = round(RATE * seconds)
    noise = np.random.default_rng(0).normal(scale=0.1, size=(samples + clips, 2))
    paths = [folder / f"{number}.wav" for number in range(clips)]
    for number, path in enumerate(paths):
        soundfile.write(path, noise[number : number + samples], RATE)
    return paths


def _features(scorer: Scorer, sounds: Sequence[ReadSound], count: int) -> None:
    """In blocks as a pass has them."""
    for begin in range(0, count, BLOCK):
        block = [sounds[i % len(sounds)] for i in range(begin, min(begin + BLOCK, count))]
        scorer.features([sound.waves[scorer.rate] for sound in block])


def _seconds(call: Callable[[], object], clips: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return {"wall": (time.perf_counter() - wall) / clips, "cpu": (time.process_time() - cpu) / clips}
