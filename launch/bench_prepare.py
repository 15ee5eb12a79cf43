"""Measure how much a second rank speeds up a preparation: the same films by one rank and by two, each with one
worker."""

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
    """Seconds for a busy film of `seconds` 16 times over, from the launch of the ranks to the finished streams, and
    without the time of a launch with a single line; one rank and two take turns. Workers decode on one thread each.

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
            for ranks in times:
                starts[ranks].append(_launch(config, overrides, manifests["one"], folder / f"one-{k}-{ranks}", ranks))
                times[ranks].append(_launch(config, overrides, manifests["all"], folder / f"all-{k}-{ranks}", ranks))
    whole = [one / two for one, two in zip(times[1], times[2], strict=True)]
    work = {ranks: [t - s for t, s in zip(times[ranks], starts[ranks], strict=True)] for ranks in times}
    alone = [one / two for one, two in zip(work[1], work[2], strict=True)]
    return {"seconds": times, "start": starts, "whole": spread(whole), "work": spread(alone)}


def summary_lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{amount(ranks, 'rank')}: {statistics.median(result['seconds'][ranks]):.1f} s, "
        f"of which {statistics.median(result['start'][ranks]):.1f} s are the launch"
        for ranks in (1, 2)
    ]
    for name, about in (("whole", "with the launch"), ("work", "without it")):
        speedup = result[name]
        low_high = f"{speedup['low']:.2f} to {speedup['high']:.2f}"
        lines.append(f"two ranks {about}: {speedup['median']:.2f} x one rank ({low_high})")
    return lines


def _launch(config: Path, overrides: Sequence[str], manifest: Path, out: Path, ranks: int) -> float:
    arguments = ["files", "--manifest", manifest, "--config", config, "--out", out, "--workers", 1, "--device", "cpu"]
    command = [sys.executable, SCRIPT, *arguments, *cli.set_options(overrides)]
    begin = time.perf_counter()
    processes = []
    for rank in range(ranks):
        rank_environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_RANK": str(rank),
            "OMP_NUM_THREADS": "1",
        }
        environment = os.environ | rank_environment
        processes.append(
            subprocess.Popen(
                list(map(str, command)), env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
            )
        )
    outputs = [process.communicate()[1].decode() for process in processes]
    if failed := [text for text, process in zip(outputs, processes, strict=True) if process.returncode]:
        raise ValueError(f"a preparation failed: {failed[0].strip()}")
    return time.perf_counter() - begin
