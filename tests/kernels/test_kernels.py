"""Each fused operation against its formula, written here once more in float64, with every gradient.

Odd sizes throughout: 1023 tokens, widths that are no power of two, a single row.
"""

import math

import pytest
import torch

from audiox_trainer.kernels.adaln import layer_norm_modulate
from audiox_trainer.kernels.attention import attention
from audiox_trainer.kernels.gated_residual import gated_residual, gated_residual_layer_norm_modulate
from audiox_trainer.kernels.joint_attention import StreamInput, joint_attention
from audiox_trainer.kernels.qk_norm_rope import qk_norm_rope
from audiox_trainer.kernels.swiglu import swiglu

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}  # of the largest value
SHAPES = [(1, 1, 8), (2, 7, 24), (3, 1023, 40)]  # B, L, W
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def assert_close(actual, expected, dtype, what=""):
    expected = expected.double()
    scale = expected.abs().max().clamp_min(1e-3)
    worst = ((actual.double() - expected).abs().max() / scale).item()
    assert worst < TOLERANCE[dtype], f"{what}: off by {worst:.2e} of the largest value"


def assert_agrees(op, formula, tensors, dtype):
    """Outputs and every gradient of `op` against those of `formula` in float64 of the same, already rounded, inputs."""
    ours = [x.detach().clone().requires_grad_() for x in tensors]
    theirs = [x.detach().double().requires_grad_() for x in tensors]
    outputs, expected = op(*ours), formula(*theirs)
    outputs, expected = [x if isinstance(x, tuple) else (x,) for x in (outputs, expected)]
    assert len(outputs) == len(expected)
    gradients = [torch.randn(x.shape, dtype=torch.float64).to(x.dtype) for x in outputs]
    for i, (a, b) in enumerate(zip(outputs, expected, strict=True)):
        assert a.dtype == dtype and a.shape == b.shape
        assert_close(a, b, dtype, f"output {i}")
    torch.autograd.backward(outputs, gradients)
    torch.autograd.backward(expected, [g.double() for g in gradients])
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.grad.dtype == a.dtype
        assert_close(a.grad, b.grad, dtype, f"gradient of input {i}")


def normed(x):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + 1e-6).sqrt()


@DTYPES
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm_modulate(dtype, shape):
    batch, _, width = shape
    tensors = [3 * torch.randn(shape) + 1, torch.randn(batch, width), torch.randn(batch, width)]
    tensors[0] = tensors[0].to(dtype)

    def formula(x, shift, scale):
        return normed(x) * (1 + scale[:, None]) + shift[:, None]

    assert_agrees(layer_norm_modulate, formula, tensors, dtype)


def test_layer_norm_keeps_its_statistics_in_float32():
    """Large values with a small spread: in bfloat16 their mean alone would be off by more than the spread."""
    x = (1000 + 8 * torch.randn(2, 5, 64)).bfloat16()
    zero = torch.zeros(2, 64)
    assert_close(layer_norm_modulate(x, zero, zero), normed(x.double()), torch.bfloat16)


@DTYPES
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_residual(dtype, shape):
    tensors = [torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), torch.randn(shape[0], shape[2])]
    assert_agrees(gated_residual, lambda x, branch, gate: x + gate[:, None] * branch, tensors, dtype)


@DTYPES
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_residual_layer_norm_modulate(dtype, shape):
    small = [torch.randn(shape[0], shape[2]) for _ in range(3)]
    tensors = [torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), *small]

    def formula(x, branch, gate, shift, scale):
        x = x + gate[:, None] * branch
        return x, normed(x) * (1 + scale[:, None]) + shift[:, None]

    assert_agrees(gated_residual_layer_norm_modulate, formula, tensors, dtype)


@DTYPES
@pytest.mark.parametrize("shape", SHAPES)
def test_swiglu(dtype, shape):
    def formula(ab):
        a, b = ab[..., : shape[2] // 2], ab[..., shape[2] // 2 :]
        return a / (1 + torch.exp(-a)) * b

    assert_agrees(swiglu, formula, [torch.randn(shape).to(dtype)], dtype)


def rotated(x, weight, angles):
    """x (B, L, H, D): RMSNorm, then pairs (i, i + D/2) as complex numbers turned by angles (L, D/2)."""
    x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat((turned.real, turned.imag), -1)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 7, 3, 8), (1, 1023, 2, 16)])  # B, L, H, D
def test_qk_norm_rope(dtype, shape):
    angles = 6 * torch.rand(shape[1], shape[3] // 2, dtype=torch.float64)
    cos, sin = angles.cos().float(), angles.sin().float()
    assert_agrees(
        lambda x, weight: qk_norm_rope(x, weight, cos, sin),
        lambda x, weight: rotated(x, weight, angles),
        [torch.randn(shape).to(dtype), (1 + 0.1 * torch.randn(shape[3])).to(dtype)],
        dtype,
    )


def attended(q, k, v, key_length):
    """(B, H, N, D) and (B, H, M, D), sample by sample and without a mask: what is padding is cut away."""
    rows = []
    for i, n in enumerate(key_length):
        scores = torch.einsum("hnd,hmd->hnm", q[i], k[i, :, :n]) / math.sqrt(q.shape[-1])
        weights = torch.exp(scores - scores.max(-1, keepdim=True).values.detach())
        rows.append(torch.einsum("hnm,hmd->hnd", weights / weights.sum(-1, keepdim=True), v[i, :, :n]))
    return torch.stack(rows)


@DTYPES
@pytest.mark.parametrize("padded", [False, True])
def test_attention(dtype, padded):
    lengths = [3, 9, 1] if padded else [9, 9, 9]
    tensors = [torch.randn(3, 2, n, 8).to(dtype) for n in (5, 9, 9)]
    assert_agrees(
        lambda q, k, v: attention(q, k, v, torch.tensor(lengths) if padded else None),
        lambda q, k, v: attended(q, k, v, lengths),
        tensors,
        dtype,
    )


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 17, 33), (2, 65, 129)])  # heads, queries, keys
def test_attention_writes_over_its_scores(dtype, shape):
    """The same bits as plain operations, whichever gradients are asked for; torch computes softmax row by row."""
    heads, n, m = shape
    q, k, v = (torch.randn(2, heads, rows, 16).to(dtype).requires_grad_() for rows in (n, m, m))
    length = torch.tensor([m, 1])
    bias = torch.zeros(2, 1, 1, m, dtype=dtype).masked_fill(torch.arange(m) >= length[:, None, None, None], -torch.inf)
    scores = (q * 0.25) @ k.transpose(2, 3) + bias
    expected, out = scores.softmax(-1) @ v, attention(q, k, v, length)
    assert torch.equal(out, expected)
    whole = torch.autograd.grad(expected, (q, k, v), v.new_ones(out.shape))
    for i, x in enumerate((q, k, v)):
        others = [y if y is x else y.detach() for y in (q, k, v)]
        (alone,) = torch.autograd.grad(attention(*others, length), x, v.new_ones(out.shape))
        assert_close(alone, whole[i], dtype)


@DTYPES
@pytest.mark.parametrize("padded", [False, True])
def test_joint_attention(dtype, padded):
    batch, heads, d, n_latent, n_condition = 3, 2, 8, 5, 7
    lengths = [2, 7, 1] if padded else [7, 7, 7]
    angles = [6 * torch.rand(n, d // 2, dtype=torch.float64) for n in (n_latent, n_condition)]
    tensors = [torch.randn(batch, n, 3, heads, d).to(dtype) for n in (n_latent, n_condition)]
    tensors += [(1 + 0.1 * torch.randn(d)).to(dtype) for _ in range(4)]
    # What padded tokens receive is not defined: nobody reads it.
    read = torch.tensor([[j < n for j in range(n_condition)] for n in lengths])[..., None]

    def op(latent, condition, *norms):
        streams = [
            StreamInput(x, norms[2 * i], norms[2 * i + 1], angles[i].cos().float(), angles[i].sin().float())
            for i, x in enumerate((latent, condition))
        ]
        first, second = joint_attention(*streams, torch.tensor(lengths) if padded else None)
        return first, second * read

    def formula(latent, condition, *norms):
        parts = []
        for i, x in enumerate((latent, condition)):
            q, k, v = x.unbind(2)
            parts.append((rotated(q, norms[2 * i], angles[i]), rotated(k, norms[2 * i + 1], angles[i]), v))
        q, k, v = (torch.cat(pair, 1).transpose(1, 2) for pair in zip(*parts, strict=True))
        out = attended(q, k, v, [n_latent + n for n in lengths]).transpose(1, 2).flatten(2)
        return out[:, :n_latent], out[:, n_latent:] * read

    assert_agrees(op, formula, tensors, dtype)


@pytest.mark.parametrize("name", ["swiglu", "gated_residual", "attention"])
def test_gradients_by_finite_differences(name):
    """For operations that let float64 pass through as it is."""

    def double(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    length = torch.tensor([2, 4])
    ops = {
        "swiglu": (swiglu, (double(2, 3, 6),)),
        "gated_residual": (gated_residual, (double(2, 3, 4), double(2, 3, 4), double(2, 4))),
        "attention": (lambda *x: attention(*x, length), (double(2, 1, 3, 4), double(2, 1, 4, 4), double(2, 1, 4, 4))),
    }
    assert torch.autograd.gradcheck(*ops[name])
