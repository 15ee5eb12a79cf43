"""Linear layers in 8 bits whose input a norm or SwiGLU writes in 8 bits: against the plain computation in float64.

Triton's interpreter loses the carry when a mantissa rounds up to the next power of two, and halves such a value. They
are left out where values are compared, and widen the tolerances of what is computed from them.
"""

import pytest
import torch
import torch.nn.functional as F
import triton

from audiox_trainer.kernels import fp8_linear
from audiox_trainer.kernels.adaln import layer_norm_modulate
from audiox_trainer.kernels.fp8_linear import FP8, LIMIT, Fp8Linear, Gated, Modulated, to_rows
from audiox_trainer.kernels.gated_residual import gated_residual_layer_norm_modulate
from audiox_trainer.kernels.swiglu import swiglu

STEP = 2**-4  # half of that between two values of 8 bits
SHAPES = pytest.mark.parametrize("shape", [(1, 1, 16), (2, 7, 48), (1, 33, 176)], ids=str)
INTERPRETED = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="needs Triton's interpreter")


def inputs(shape, dtype=torch.float32):
    batch, tokens, width = shape
    x = (2 * torch.randn(shape) + 1).to(dtype)
    shift, scale = torch.randn(batch, 3 * width).chunk(3, -1)[:2]
    return x, shift, scale, torch.randn(batch, tokens, 2 * width).to(dtype), torch.randn(32, width) / width**0.5


def is_rows_of(y, row_scale, expected):
    """Within a step of each value, and the largest of each row is the largest in 8 bits."""
    assert y.dtype == FP8 and row_scale.dtype == torch.float32 and y.shape == expected.shape
    actual, top = y.double() * row_scale, expected.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(row_scale.double(), top / LIMIT, rtol=1e-4, atol=1e-12)
    carried = torch.frexp(expected / row_scale)[0].abs() > 1 - 2**-5
    assert (carried | ((actual - expected).abs() <= STEP * expected.abs() + 2**-9 * top)).all()


@INTERPRETED
@SHAPES
def test_the_kernels_write_rows_with_their_scales(shape):
    x, shift, scale, ab, _ = inputs(shape)
    y, row_scale, mean, rstd = fp8_linear._norm_rows_triton(x, shift, scale)
    is_rows_of(y, row_scale, layer_norm_modulate(x.double(), shift.double(), scale.double()))
    torch.testing.assert_close(mean, x.mean(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rstd, (x.var(-1, unbiased=False) + 1e-6).rsqrt(), atol=1e-5, rtol=1e-4)
    is_rows_of(*fp8_linear._swiglu_rows_triton(ab), swiglu(ab.double()))


def test_rows_of_zeros_stay_zeros():
    y, row_scale = to_rows(torch.zeros(2, 3, 16))
    assert y.double().abs().max() == 0 and row_scale.min() > 0


def layers(kind, shape, dtype=torch.float32):
    """The tensors of a layer; ours and the plain computation as functions of them."""
    x, shift, scale, ab, weight = inputs(shape, dtype)
    layer = Fp8Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")

    def ours(*tensors):
        *given, w = tensors
        return torch.func.functional_call(layer, {"weight": w}, ((Modulated if kind == "norm" else Gated)(*given),))

    def plain(*tensors):
        *given, w = tensors
        return F.linear((layer_norm_modulate if kind == "norm" else swiglu)(*given), w)

    return ((x, shift, scale) if kind == "norm" else (ab,)) + (weight,), ours, plain


@SHAPES
@pytest.mark.parametrize("kind", ["norm", "swiglu"])
@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=INTERPRETED)], ids=["plain", "triton"])
def test_outputs_and_gradients_are_near_the_exact_ones(kind, shape, kernels, monkeypatch):
    """The root mean square of what the rounding changes, of the largest value: all 8-bit errors average out."""
    if kernels:
        monkeypatch.setattr(fp8_linear, "_on_gpu", lambda x: True)  # the kernels; products stay emulated
    tensors, ours, plain = layers(kind, shape)
    mine, theirs = ([t.clone().to(kind_).requires_grad_() for t in tensors] for kind_ in (torch.float32, torch.float64))
    out, expected = ours(*mine), plain(*theirs)
    g = torch.randn(out.shape)
    gradients = torch.autograd.grad(out, mine, g), torch.autograd.grad(expected, theirs, g.double())
    near, alike = (0.12, 0.95) if kernels else (0.06, 0.99)
    for i, (a, b) in enumerate([(out, expected), *zip(*gradients, strict=True)]):
        assert a.shape == b.shape and a.dtype == torch.float32
        top = b.abs().max().clamp_min(1e-3)
        assert (a.double() - b).square().mean().sqrt() / top < near, i
        assert (a.double() * b).sum() / (a.double().norm() * b.norm()).clamp_min(1e-9) > alike or top == 1e-3, i


def test_a_residual_before_a_norm_is_the_same():
    x, shift, scale, _, _ = inputs((2, 5, 48))
    branch, gate = torch.randn_like(x), torch.randn_like(shift)
    new, modulated = fp8_linear.gated_residual_then_modulated(x, branch, gate, shift, scale)
    expected, normed = gated_residual_layer_norm_modulate(x, branch, gate, shift, scale)
    torch.testing.assert_close(new, expected)
    torch.testing.assert_close(layer_norm_modulate(*modulated), normed)


def test_half_precision_goes_in_and_comes_out():
    for kind in ("norm", "swiglu"):
        tensors, ours, _ = layers(kind, (2, 7, 48), torch.bfloat16)
        tensors = [t.to(torch.bfloat16) if i in (0, len(tensors) - 1) else t for i, t in enumerate(tensors)]
        given = [t.clone().requires_grad_() for t in tensors]
        out = ours(*given)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        assert [t.grad.dtype for t in given] == [t.dtype for t in given]
