"""Steps, kernels and sampling are measured without mosaicml-streaming, which reads shards alone; kernels and sampling
without DeepSpeed as well."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

WITHOUT = """
import importlib, sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing}:
            raise ModuleNotFoundError(name + " is not installed here")

sys.meta_path.insert(0, Refusing())
for name in {modules}:
    importlib.import_module("audiox_trainer." + name)
"""
BENCHMARKS = "trainer.benchmarks."


@pytest.mark.parametrize(
    ("missing", "modules"),
    [
        ("streaming", [*(BENCHMARKS + name for name in ("train", "distill", "memory")), "trainer.training.pretrain"]),
        ("streaming deepspeed", [BENCHMARKS + "kernels", BENCHMARKS + "sample", "launch.bench_tiles"]),
    ],
    ids=["without streaming", "without DeepSpeed"],
)
def test_what_is_not_needed_is_not_imported(root, missing, modules):
    code = WITHOUT.format(missing=set(missing.split()), modules=modules)
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
