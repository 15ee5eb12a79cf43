"""Whole steps on tensors that say they are on a GPU: no operation mixes devices, every gradient is on the device, and
the host waits for it nowhere but where it is listed here. DeepSpeed, which waits by itself, is replaced."""

import json
import subprocess
import sys

import pytest
import torch

from tests.gpu import fake_cuda

# Where the host may wait: for what is logged, heard or written, and for what an encoder reads.
WAITS = {
    "pretraining": (),
    "pretraining_metrics": ("engine/meter.py",),
    "distillation": (),
    "distillation_euler": (),
    "preview": ("training/previews.py",),
    "sampling": ("encoders/t5.py", "network.timestep_features(t)", ".cpu()"),
    "sampling_graph": ("encoders/t5.py", "network.timestep_features(t)", ".cpu()"),
    "checkpoint": ("checkpoint/save.py",),
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(root, tmp_path_factory):
    if torch.version.cuda:
        pytest.skip("this build of torch has CUDA itself")
    if fake_cuda.compiler() is None:
        pytest.skip("no C++ compiler: c++, g++ or clang++")
    folder = tmp_path_factory.mktemp("fake_cuda")
    command = [sys.executable, "-m", "tests.gpu.steps", fake_cuda.build(folder), folder / "results.json"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", WAITS)
def test_everything_is_on_the_device_and_nothing_waits(results, name):
    result = results[name]
    assert not result["error"], result["error"]
    unexpected = [line for line in result["waits"] if not any(place in line for place in WAITS[name])]
    assert unexpected == []
    assert set(results) == set(WAITS)


def test_a_copy_that_waits_is_seen(results):
    """The check itself: what is written has to be on the host, and a batch comes from there."""
    assert any("a copy to the host" in line for line in results["checkpoint"]["waits"])
    assert any("to the device" in line for line in results["pretraining"]["copies"])
