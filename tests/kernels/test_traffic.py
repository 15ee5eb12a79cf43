"""Bytes that the backward passes of norms and residuals read and write, counted in Triton's interpreter at the 2p7b
shape, against the least: each input once, each output once."""

import pytest
import torch
import triton

from audiox_trainer.kernels import adaln, gated_residual, row_sums

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="counts in Triton's interpreter"),
]

WIDTH, TOKENS = 1536, (215, 463)  # of the latents, and of the conditions with full texts
MULTIPROCESSORS = 4  # for one sample: 132 of an H100 for 30
TENSOR = 2 * sum(TOKENS) * WIDTH  # bytes of (B, N, W) of both streams
LIMIT = 1.05


@pytest.fixture
def traffic(monkeypatch):
    """The bytes of each load and store. What a mask leaves out does not count."""
    from triton.runtime.interpreter import interpreter_builder

    counted = []

    def count(name, mask):
        original = getattr(interpreter_builder, name)

        def call(pointers, *arguments):
            bits = pointers.get_element_ty().primitive_bitwidth
            counted.append(int(arguments[mask].data.sum()) * bits // 8)
            return original(pointers, *arguments)

        monkeypatch.setattr(interpreter_builder, name, call)

    count("create_masked_load", 0)
    count("create_masked_store", 1)
    monkeypatch.setattr(row_sums, "multiprocessors", lambda _: MULTIPROCESSORS)
    return counted


def norm(x, row, modulation):
    adaln._layer_norm_modulate_backward(x, x, modulation, row, row)


def residual(x, row, modulation):
    gated_residual._gated_residual_backward(x, x, modulation)


def residual_and_norm(x, row, modulation):
    gated_residual._gated_residual_norm_backward(x, x, modulation, modulation, row, row, x, x)


@pytest.mark.parametrize(("backward", "tensors"), [(norm, 3), (residual, 3), (residual_and_norm, 6)])
def test_backward_moves_little_more_than_inputs_and_outputs(traffic, backward, tensors):
    for n in TOKENS:
        backward(torch.randn(1, n, WIDTH).bfloat16(), torch.rand(1, n), torch.randn(1, WIDTH))
    assert 1 < sum(traffic) / (tensors * TENSOR) < LIMIT


def test_what_is_counted(traffic):
    """The norm forward: x, y, its token's modulation, mean and 1/deviation."""
    adaln.layer_norm_modulate_triton(torch.randn(2, 3, 24), torch.randn(2, 24), torch.randn(2, 24))
    assert sum(traffic) == 4 * 2 * 3 * (4 * 24 + 2)
