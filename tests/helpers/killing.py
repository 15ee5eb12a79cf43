"""Kill the driver or the makers of a preparation at random moments, and let it continue."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from audiox_trainer.trainer.prepare.prepare_files import Workers
from tests.helpers.preparation import start_driver

FORKSERVER = "multiprocessing.forkserver"


def makers(driver: int) -> list[int]:
    """The process numbers of a driver's makers: they fork from its fork server."""
    found = []
    with contextlib.suppress(psutil.Error):
        for server in psutil.Process(driver).children():
            if FORKSERVER in " ".join(server.cmdline()):
                found += [child.pid for child in server.children()]
    return found


def finished(out: Path | str) -> dict[str, float]:
    """The time at which each block was finished."""
    return {p.name: p.stat().st_mtime_ns for p in Path(out, "work/blocks").glob("*.json")}


def kill(number: int) -> bool:
    try:
        os.kill(number, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def prepare_under_fire(
    out: Path | str,
    path: Path,
    workers: int | Workers,
    seed: int,
    drivers: int,
    shots: int,
    targets: Callable[[int], list[int]] = makers,
    finished: Callable[[Path | str], dict[str, float]] = finished,
) -> None:
    """Prepare a manifest. Each of `drivers` drivers is killed after its share of `shots` kills of makers, each kill at
    a random moment. A last one ends the work. What was finished at a kill is not made again."""
    rng, before = np.random.default_rng(seed), dict[str, float]()
    for number in range(drivers + 1):
        driver, left = start_driver(out, path, workers), shots // (drivers + 1)
        assert driver.pid is not None
        while left and driver.is_alive():
            time.sleep(rng.uniform(0.05, 0.6))
            found = targets(driver.pid)
            left -= bool(found) and kill(found[rng.integers(len(found))])
        if number == drivers:
            driver.join(1200)
            assert driver.exitcode == 0
        else:
            time.sleep(rng.uniform(0, 1.0))
            driver.kill()
            driver.join(600)
        assert before.items() <= finished(out).items(), "what was finished was made again"
        before = finished(out)
