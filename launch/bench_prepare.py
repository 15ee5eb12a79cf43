"""Measure a preparation: the same films by one worker, by two, and by two of Ray; and what it costs to hand out a
block."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from audiox_trainer.trainer.benchmarks.decode import busy_film
from audiox_trainer.trainer.benchmarks.summary import spread
from audiox_trainer.trainer.core import cli
from audiox_trainer.trainer.core.english import amount
from audiox_trainer.trainer.workers.cluster import LOCAL, connected
from audiox_trainer.trainer.workers.driver import drive
from audiox_trainer.trainer.workers.pool import Pool
from audiox_trainer.trainer.workers.process_pool import ProcessPool

SCRIPT = Path(__file__).with_name("prepare.py")
COPIES = 16  # of the film, each a line of the manifest
BLOCKS = 500  # empty ones that are handed out
MINUTE, MAKERS = 60.0, 64  # a block's seconds, and makers, for which the driver's share is computed


def measure(config: Path, overrides: Sequence[str], rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds for a busy film of `seconds` 16 times over, from the launch to the finished streams, and without the
    time of a launch with a single line. One worker, two, and two of Ray if it is installed take turns. Workers decode
    on one thread each. `hand_out` are seconds per block that does nothing: by the clock, and of the driver's processor.

    Raises ValueError with the message of a preparation that fails.
    """
    has_ray = importlib.util.find_spec("ray") is not None
    ways = {"1": ["--workers", "1"], "2": ["--workers", "2"]}
    ways |= {"2 of Ray": ["--workers", "2", "--address", LOCAL]} if has_ray else {}
    times: dict[str, list[float]] = {way: [] for way in ways}
    starts: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(prefix="bench-prepare-") as temporary:
        folder = Path(temporary)
        film = busy_film(folder / "film.mp4", seconds)
        manifests = {}
        for name, lines in (("all", COPIES), ("one", 1)):
            manifests[name] = folder / f"{name}.jsonl"
            line = json.dumps({"video": str(film), "end": seconds if name == "all" else 0.1})
            manifests[name].write_text(f"{line}\n" * lines)
        for k in range(rounds):
            for way, options in ways.items():
                for name, found in (("one", starts), ("all", times)):
                    out = folder / f"{name}-{k}-{way}".replace(" ", "-")
                    found[way].append(_launch(config, overrides, manifests[name], out, options))
    work = {way: [t - s for t, s in zip(times[way], starts[way], strict=True)] for way in ways}
    result: dict[str, Any] = {"seconds": times, "start": starts, "whole": _ratio(times, "1", "2")}
    result |= {"work": _ratio(work, "1", "2"), "hand_out": {"processes": _hand_out(ProcessPool([_nothing]))}}
    if has_ray:
        result["ray"] = _ratio(work, "2", "2 of Ray")
        with connected(LOCAL, 2):  # which decides how Ray may be imported
            from audiox_trainer.trainer.workers.ray_pool import RayPool

            result["hand_out"]["Ray"] = _hand_out(RayPool(_nothing, lambda: 1, {"num_cpus": 1}))
    return result


def summary_lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{amount(int(way[0]), 'worker')}{way[1:]}: {statistics.median(seconds):.1f} s, "
        f"of which {statistics.median(result['start'][way]):.1f} s are the launch"
        for way, seconds in result["seconds"].items()
    ]
    for name, about in (
        ("whole", "two workers with the launch: {} x one worker"),
        ("work", "two workers without it: {} x one worker"),
        ("ray", "two workers of Ray without it: {} x two processes"),
    ):
        if speedup := result.get(name):
            low_high = f"({speedup['low']:.2f} to {speedup['high']:.2f})"
            lines.append(f"{about.format(format(speedup['median'], '.2f'))} {low_high}")
    for way, found in result["hand_out"].items():
        lines.append(
            f"a block that does nothing, by {way}: {1000 * found['clock']:.2f} ms, {found['clock'] / MINUTE:.3%} of a "
            f"minute; {1000 * found['driver']:.2f} ms of the driver's processor, so {MAKERS} makers of blocks of a "
            f"minute take {MAKERS * found['driver'] / MINUTE:.2%} of its core"
        )
    return lines


def _ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    return spread([a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])


def _launch(config: Path, overrides: Sequence[str], manifest: Path, out: Path, options: Sequence[str]) -> float:
    arguments = ["files", "--manifest", manifest, "--config", config, "--out", out, *options]
    command = [sys.executable, SCRIPT, *arguments, "--device", "cpu", *cli.set_options(overrides)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    begin = time.perf_counter()
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"a preparation failed: {done.stderr.strip()}")
    return time.perf_counter() - begin


def _nothing(task: int) -> Iterator[int]:
    yield task


def _hand_out(made: Pool[int]) -> dict[str, float]:
    """Seconds per block of one maker that gives one output, after it has come up."""
    with made as pool:
        begin = _now()
        for done, _ in enumerate(drive(pool, iter(range(BLOCKS + 1)), lambda: None)):
            if done == 0:  # it is there
                begin = _now()
        end = _now()
    return {name: (end[name] - begin[name]) / BLOCKS for name in end}


def _now() -> dict[str, float]:
    return {"clock": time.perf_counter(), "driver": time.process_time()}
