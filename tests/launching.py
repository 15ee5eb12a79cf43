"""Several ranks of a script on this machine, as torchrun starts them, without torchrun's own seconds."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from tests.small import ROOT


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(
    ranks: int,
    module: str,
    *arguments: str,
    timeout: float = 300,
    local: int | None = None,
    allowed: Sequence[int] = (0,),
) -> list[str]:
    """Start `python -m module` once for each rank and wait for all; returns what each printed.

    When a rank fails the others are ended, as a launcher does. `local` ranks make a node (default: all).
    """
    common = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(local or ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", module, *arguments]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank % (local or ranks))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode in allowed, f"rank {rank} left with {process.returncode}:\n{output[-6000:]}"
    return outputs
