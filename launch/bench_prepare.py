"""Measure how much a second maker speeds up a preparation: the same films by one worker and by two."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiox_trainer.trainer.benchmarks.decode import busy_film
from audiox_trainer.trainer.benchmarks.summary import spread
from audiox_trainer.trainer.core import cli
from audiox_trainer.trainer.core.english import amount

SCRIPT = Path(__file__).with_name("prepare.py")
COPIES = 16  # of the film, each a line of the manifest


def measure(config: Path, overrides: Sequence[str], rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds for a busy film of `seconds` 16 times over, from the launch to the finished streams, and without the
    time of a launch with a single line; one worker and two take turns. Workers decode on one thread each.

    Raises ValueError with the message of a preparation that fails.
    """
    times: dict[int, list[float]] = {1: [], 2: []}
    starts: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="bench-prepare-") as temporary:
        folder = Path(temporary)
        film = busy_film(folder / "film.mp4", seconds)
        manifests = {}
        for name, lines in (("all", COPIES), ("one", 1)):
            manifests[name] = folder / f"{name}.jsonl"
            line = json.dumps({"video": str(film), "end": seconds if name == "all" else 0.1})
            manifests[name].write_text(f"{line}\n" * lines)
        for k in range(rounds):
            for workers in times:
                starts[workers].append(
                    _launch(config, overrides, manifests["one"], folder / f"one-{k}-{workers}", workers)
                )
                times[workers].append(
                    _launch(config, overrides, manifests["all"], folder / f"all-{k}-{workers}", workers)
                )
    whole = [one / two for one, two in zip(times[1], times[2], strict=True)]
    work = {n: [t - s for t, s in zip(times[n], starts[n], strict=True)] for n in times}
    alone = [one / two for one, two in zip(work[1], work[2], strict=True)]
    return {"seconds": times, "start": starts, "whole": spread(whole), "work": spread(alone)}


def summary_lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{amount(workers, 'worker')}: {statistics.median(result['seconds'][workers]):.1f} s, "
        f"of which {statistics.median(result['start'][workers]):.1f} s are the launch"
        for workers in (1, 2)
    ]
    for name, about in (("whole", "with the launch"), ("work", "without it")):
        speedup = result[name]
        low_high = f"{speedup['low']:.2f} to {speedup['high']:.2f}"
        lines.append(f"two workers {about}: {speedup['median']:.2f} x one worker ({low_high})")
    return lines


def _launch(config: Path, overrides: Sequence[str], manifest: Path, out: Path, workers: int) -> float:
    arguments = ["files", "--manifest", manifest, "--config", config, "--out", out, "--workers", workers]
    command = [sys.executable, SCRIPT, *arguments, "--device", "cpu", *cli.set_options(overrides)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    begin = time.perf_counter()
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"a preparation failed: {done.stderr.strip()}")
    return time.perf_counter() - begin
