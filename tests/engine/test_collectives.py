"""DeepSpeed's collectives raise no deprecation warning of torch."""

import subprocess
import sys

import pytest

SCRIPT = """
import deepspeed, torch
from audiox_trainer.trainer.engine.process_group import init_process_group

init_process_group(threads=1)
result = torch.zeros(2)
deepspeed.comm.all_gather_into_tensor(result, torch.ones(2))
deepspeed.comm.reduce_scatter_tensor(result, result + 1)
assert result.tolist() == [2, 2]
"""


@pytest.mark.slow
def test_collectives_are_not_deprecated(root):
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", SCRIPT], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
