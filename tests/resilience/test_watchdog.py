"""A rank's verdict reaches all others, also those that cannot read it for a while."""

import os
import subprocess
import sys
import textwrap

import pytest

from audiox_trainer.trainer.core.cli import ExitCode
from audiox_trainer.trainer.core.hardware import free_port
from tests.helpers.small_config import ROOT

# Threads of a library call Python, one after the other for some seconds, during many signs of life.
ATTACHING = """
    import ctypes, time
    import torch.distributed as dist
    from audiox_trainer.trainer.core.config import TimeoutsConfig
    from audiox_trainer.trainer.resilience.watchdog import Watchdog

    libc, kind = ctypes.CDLL(None), ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    called = kind(lambda _: 0)
    with Watchdog(TimeoutsConfig(start=60, first_step=60, step=60, save=60)) as watchdog:
        watchdog.pause = 0.001
        dist.init_process_group("gloo")
        watchdog.connect(dist.get_rank(), 2)
        end, step = time.monotonic() + 5, 0
        while time.monotonic() < end:
            watchdog.enter("step", step := step + 1)
            threads = [ctypes.c_ulong() for _ in range(8)]
            for thread in threads:
                libc.pthread_create(ctypes.byref(thread), None, called, None)
            for thread in threads:
                libc.pthread_join(thread, None)
"""

# Rank 0 fails at once. Rank 1 is in a library call that keeps Python's lock, so none of its threads can read.
SCRIPT = """
    import ctypes, os, sys
    import torch.distributed as dist
    from audiox_trainer.trainer.core.cli import run
    from audiox_trainer.trainer.core.config import TimeoutsConfig
    from audiox_trainer.trainer.data.shards import DamagedError
    from audiox_trainer.trainer.resilience.watchdog import Watchdog

    def work():
        with Watchdog(TimeoutsConfig(start=60, first_step=60, step=10, save=60)) as watchdog:
            dist.init_process_group("gloo")
            watchdog.connect(dist.get_rank(), 2)
            if dist.get_rank() == 0:
                raise DamagedError("shard 7 has changed")
            ctypes.PyDLL(None).sleep(int(sys.argv[1]))
            dist.barrier()

    sys.exit(run(work))
"""


def launch(script, text, *arguments):
    """Two ranks of a script: their exit codes and their output."""
    script.write_text(textwrap.dedent(text))
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, *arguments],
            cwd=ROOT,
            env=common | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in ranks]
    return [process.returncode for process in ranks], said


@pytest.mark.parametrize("seconds", [0, 6])
def test_a_rank_that_does_not_listen_hears_later(tmp_path, seconds):
    codes, said = launch(tmp_path / "rank.py", SCRIPT, str(seconds))
    assert codes == [ExitCode.CORRUPT] * 2, said
    assert "error: shard 7 has changed" in said[0] and "error: rank 0: shard 7 has changed" in said[1]


def test_a_run_that_goes_on_is_not_looked_into(tmp_path):
    """Python 3.11 crashes with SIGSEGV if stacks are read while a C++ thread attaches itself."""
    codes, said = launch(tmp_path / "rank.py", ATTACHING)
    assert codes == [0, 0], said
