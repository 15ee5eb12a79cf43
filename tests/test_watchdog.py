"""What one rank has to say reaches all the others, also those that cannot listen for a while."""

import os
import subprocess
import sys
import textwrap

import pytest

from audiox_turbo.trainer.command import ExitCode
from audiox_turbo.trainer.hardware import free_port
from tests.small import ROOT

# Rank 0 is refused something at once, rank 1 is in a library's call that keeps Python's lock, no thread listens.
SCRIPT = """
    import ctypes, os, sys
    import torch.distributed as dist
    from audiox_turbo.trainer.command import exit_code
    from audiox_turbo.trainer.config import TimeoutsConfig
    from audiox_turbo.trainer.data.shards import DamagedError
    from audiox_turbo.trainer.watchdog import Watchdog

    def work():
        with Watchdog(TimeoutsConfig(start=60, first_step=60, step=10, save=60)) as watchdog:
            dist.init_process_group("gloo")
            watchdog.connect(dist.get_rank(), 2)
            if dist.get_rank() == 0:
                raise DamagedError("shard 7 has changed")
            ctypes.PyDLL(None).sleep(int(sys.argv[1]))
            dist.barrier()

    sys.exit(exit_code(work))
"""


@pytest.mark.parametrize("seconds", [0, 6])
def test_a_rank_that_does_not_listen_hears_later(tmp_path, seconds):
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(SCRIPT))
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(seconds)],
            cwd=ROOT,
            env=common | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [ExitCode.CORRUPT] * 2, said
    assert "error: shard 7 has changed" in said[0] and "error: rank 0: shard 7 has changed" in said[1]
