"""What is measured of a machine takes little time on any."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from audiox_trainer.trainer.core import hardware

CPU = torch.device("cpu")


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
