"""What is measured of a machine takes little time on any."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from audiox_trainer.trainer.core import hardware

CPU = torch.device("cpu")


def test_more_files_may_be_opened_where_the_user_may(monkeypatch):
    limits = {"now": (256, 4096)}
    monkeypatch.setattr(hardware.resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(hardware.resource, "setrlimit", lambda _, pair: limits.update(now=pair))
    hardware.allow_open_files()
    assert limits["now"] == (4096, 4096)
    limits["now"] = (1024, hardware.resource.RLIM_INFINITY)
    hardware.allow_open_files()
    assert limits["now"] == (hardware.OPEN_FILES, hardware.resource.RLIM_INFINITY)
    for enough in ((2 * hardware.OPEN_FILES, 2 * hardware.OPEN_FILES), (hardware.resource.RLIM_INFINITY,) * 2):
        limits["now"] = enough
        hardware.allow_open_files()
        assert limits["now"] == enough


@pytest.mark.parametrize(
    ("dtype", "has_bf16", "size"),
    [(torch.float32, False, 1024), (torch.bfloat16, False, 256)],
    ids=["fp32", "bf16 without instructions for it"],
)
def test_the_peak_is_measured_on_products_that_the_cpu_can_do(monkeypatch, dtype, has_bf16, size):
    """A run on a CPU without such instructions began half a minute later."""
    monkeypatch.setattr(hardware, "cpu_has_bf16", lambda: has_bf16)
    before = torch.get_rng_state()
    with FlopCounterMode(display=False) as counter:
        assert hardware.peak_flops(CPU, dtype) > 0
    assert counter.get_total_flops() == 12 * 2 * size**3
    assert torch.equal(torch.get_rng_state(), before)
