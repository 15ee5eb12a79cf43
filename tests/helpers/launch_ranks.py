"""Starts several ranks of a script on this machine as torchrun does, but without torchrun's start-up time."""

import os
import subprocess
import tempfile
import time
from contextlib import ExitStack

from audiox_trainer.trainer.core.hardware import free_port
from tests.helpers.small_config import ROOT
from tests.helpers.warm_python import python


def launch_ranks(ranks: int, module: str, *arguments: str, timeout: float = 300) -> None:
    """Starts `python -m module` once per rank and waits for all. When one fails, the others are killed.

    Raises AssertionError with the output of the ranks that failed.
    """
    common = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    end = time.monotonic() + timeout
    with ExitStack() as stack:
        prints = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(ranks)]
        processes = [
            subprocess.Popen(
                [*python(), "-m", module, *arguments],
                cwd=ROOT,
                env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=prints[rank],
                stderr=subprocess.STDOUT,
            )
            for rank in range(ranks)
        ]
        while any(p.poll() is None for p in processes) and not any(p.poll() for p in processes):
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        failed = [rank for rank, process in enumerate(processes) if process.poll() != 0]
        for process in processes:
            process.kill()
            process.wait()
        for file in prints:
            file.seek(0)
        said = [f"rank {rank}, {processes[rank].returncode}:\n{prints[rank].read()[-5000:]}" for rank in failed]
    assert not failed, "\n".join(said)
