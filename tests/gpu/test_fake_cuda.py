"""Whole steps on tensors that say they are on a GPU: no operation mixes devices, every gradient is on the device, and
the host waits for it nowhere but where it is listed here. DeepSpeed, which waits by itself, is replaced."""

import pytest

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
def results(tmp_path_factory):
    return fake_cuda.run("tests.gpu.steps", tmp_path_factory.mktemp("fake_cuda"))


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
