"""What a process loads before it trains: a rank starts seconds earlier without torch's compiler."""

import os
import subprocess
import sys

from tests.helpers.small_config import ROOT

# DeepSpeed's optimizers import the last one when they are made.
START = """
import sys
import audiox_trainer.trainer.distillation.distill
import audiox_trainer.trainer.generation.generator
import audiox_trainer.trainer.training.pretrain
import deepspeed.runtime.zero.muon.muon_optimizer
from audiox_trainer.kernels.ops import BACKENDS, resolve
assert {"torch._dynamo", "torch._inductor"}.isdisjoint(sys.modules)
resolve(dict.fromkeys(BACKENDS, "triton"))
assert "torch._inductor" in sys.modules, "kernels are operators that the compiler knows"
"""


def test_the_compiler_is_loaded_where_kernels_are_chosen():
    compiled = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", START]
    done = subprocess.run(command, cwd=ROOT, env=compiled, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
