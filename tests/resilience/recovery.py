"""Measures how long it takes to notice a lost rank, and until the run trains again.

    python -m tests.resilience.recovery --times 5

Two ranks of the small model, `timeouts.step` 10 s. In turn rank 1 is killed or stopped in a step: under the shipped
batch script in a Slurm of two nodes, and in a loop that starts launch/pretrain.py again immediately. Prints seconds
from the signal to the sentence that names the rank, and to the first new step; medians, and the least and the most.
"""

import argparse
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import supervised_runs
from tests.helpers.slurm import Slurm, until, why_not

PATIENCE = 600.0
NAMED = "rank 1"
HOW = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}


@dataclass(frozen=True)
class Loss:
    """Seconds from the signal."""

    noticed: float
    training: float


def lost(
    run: supervised_runs.Run, victim: int, how: signal.Signals, said: Callable[[], str], again: Callable[[], None]
) -> Loss:
    """Sends rank 1's process the signal; `again` starts the run again."""
    words = said().count(NAMED)
    os.kill(victim, how)
    begun = time.monotonic()
    until(lambda: said().count(NAMED) > words, PATIENCE)
    noticed = time.monotonic() - begun
    before = run.step()
    again()
    until(lambda: run.step() > before, PATIENCE)
    return Loss(noticed, time.monotonic() - begun)


def in_slurm(slurm: Slurm, base: Path, times: int) -> dict[str, list[Loss]]:
    run = supervised_runs.Run("pretrain", base, "slurm")
    arguments = (str(base / "pretrain.json"), "--no-self-test", "--set", "training.steps=100000")
    job = slurm.submit(run.folder, "pretrain", *arguments, MAX_RETRIES="1000")
    until(lambda: run.step() > 0, PATIENCE)
    found: dict[str, list[Loss]] = {name: [] for name in HOW}
    for _ in range(times):
        for name, how in HOW.items():
            at = run.step()
            until(lambda at=at: run.step() > at + 2, PATIENCE)
            found[name].append(lost(run, slurm.ranks()[1], how, job.said, lambda: None))
    slurm.run("scancel", job.number)
    return found


def in_a_loop(base: Path, times: int) -> dict[str, list[Loss]]:
    run = supervised_runs.Run("pretrain", base, "loop")
    start = ("launch/pretrain.py", "--set", "training.steps=100000")
    found: dict[str, list[Loss]] = {name: [] for name in HOW}

    def again() -> None:
        run.wait(PATIENCE, (0,))
        run.clear()
        run.start(start)

    run.start(start)
    for _ in range(times):
        for name, how in HOW.items():
            at = run.step()
            until(lambda at=at: run.step() > at + 2, PATIENCE)
            found[name].append(lost(run, run.processes[1].pid, how, run.said, again))
    run.clear()
    return found


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="of each kind (default %(default)s)")
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory(prefix="recovery-") as name:
        base = Path(name)
        supervised_runs.prepare(base)
        found = {"loop": in_a_loop(base, times)}
        if why_not():
            print(f"no Slurm: {why_not()}")
        else:
            (base / "daemons").mkdir()
            with Slurm(base / "daemons") as slurm:
                found["Slurm"] = in_slurm(slurm, base, times)
    print(f"seconds, median (least to most) of {times}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for where, kinds in found.items():
        for kind, losses in kinds.items():
            noticed, training = spread([x.noticed for x in losses]), spread([x.training for x in losses])
            print(f"{where}, {kind}: noticed {noticed}, training again {training}")


if __name__ == "__main__":
    main()
