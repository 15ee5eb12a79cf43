"""LayerNorm followed by modulation (adaLN): y = LN(x)·(1 + scale) + shift, without learnt affine parameters.

B batch, L tokens, W width. Statistics are taken in float32 and the result is cast once.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .device import on_tensor_device

EPS = 1e-6
ROWS = 8  # tokens over which one program of the backward pass sums the modulation's gradients


def layer_norm_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, L, W), shift and scale (B, W) in float32 -> (B, L, W) in the dtype of x."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = F.layer_norm(wide, (x.shape[-1],), eps=EPS)
    return (normed * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)).to(x.dtype)


def layer_norm_modulate_triton(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`layer_norm_modulate` in one pass over x forward and one over x and the gradient backward."""
    y, _, _ = _layer_norm_modulate(x, shift, scale)
    return y


@triton.jit
def layer_norm_forward(a, shift, scale, y, mean, rstd, row, modulation, column, inside, W, eps):
    """Store LN(a)·(1 + scale) + shift of one token, its mean and its 1/deviation at `row`. a (BLOCK,) in float32;
    `modulation` is where its sample begins in shift and scale."""
    m = tl.sum(a, 0) / W
    centred = tl.where(inside, a - m, 0.0)
    r = tl.rsqrt(tl.sum(centred * centred, 0) / W + eps)
    s = tl.load(scale + modulation + column, mask=inside, other=0.0)
    t = tl.load(shift + modulation + column, mask=inside, other=0.0)
    tl.store(y + row * W + column, (centred * r * (1 + s) + t).to(y.dtype.element_ty), mask=inside)
    tl.store(mean + row, m)
    tl.store(rstd + row, r)


@triton.jit
def _forward(x, shift, scale, y, mean, rstd, L, W, sample_stride, eps, BLOCK: tl.constexpr):
    """One token per program. x, y (B·L, W); shift, scale (B, W), rows `sample_stride` apart; mean, rstd (B·L,)."""
    row = tl.program_id(0).to(tl.int64)
    sample = row // L
    column = tl.arange(0, BLOCK)
    inside = column < W
    a = tl.load(x + row * W + column, mask=inside, other=0.0).to(tl.float32)
    layer_norm_forward(a, shift, scale, y, mean, rstd, row, sample * sample_stride, column, inside, W, eps)


@triton.jit
def layer_norm_backward(a, dy, factor, m, r, W, inside):
    """One token's input a, gradient dy, factor 1 + scale, mean m and 1/deviation r -> its LN(a), the gradient at a.
    All are (BLOCK,) in float32."""
    normed = tl.where(inside, (a - m) * r, 0.0)
    h = dy * factor
    return normed, r * (h - tl.sum(h, 0) / W - normed * (tl.sum(h * normed, 0) / W))


@triton.jit
def _backward(
    x, dy, scale, mean, rstd, dx, dshift, dscale, L, W, sample_stride, chunks, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """ROWS tokens of one sample per program. x, dy, dx (B, L, W); dshift, dscale (B, chunks, W): sums over tokens."""
    sample = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < W
    factor = 1 + tl.load(scale + sample * sample_stride + column, mask=inside, other=0.0)
    sum_shift = tl.zeros((BLOCK,), tl.float32)
    sum_scale = tl.zeros((BLOCK,), tl.float32)
    for i in range(ROWS):
        token = chunk * ROWS + i
        if token < L:
            row = sample * L + token
            a = tl.load(x + row * W + column, mask=inside, other=0.0).to(tl.float32)
            g = tl.load(dy + row * W + column, mask=inside, other=0.0).to(tl.float32)
            normed, back = layer_norm_backward(a, g, factor, tl.load(mean + row), tl.load(rstd + row), W, inside)
            sum_shift += g
            sum_scale += g * normed
            tl.store(dx + row * W + column, back.to(dx.dtype.element_ty), mask=inside)
    place = (sample * chunks + chunk) * W + column
    tl.store(dshift + place, sum_shift, mask=inside)
    tl.store(dscale + place, sum_scale, mask=inside)


def row_launch(W: int) -> dict[str, int]:
    """Launch options of kernels that hold a whole token of W values: at least 16 bytes per thread, at most 16 warps."""
    block = triton.next_power_of_2(W)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 256))}


def same_rows(*modulation: Tensor) -> tuple[Tensor, ...]:
    """Modulations (B, W) whose rows have one common stride, as chunks of one product or one row for all samples have.
    Others, and those whose rows are not dense, are copied."""
    strides = {m.stride() for m in modulation}
    if len(strides) == 1 and modulation[0].stride(1) == 1:
        return modulation
    return tuple(m.contiguous() for m in modulation)


@torch.library.custom_op("audiox_trainer::layer_norm_modulate", mutates_args=())
@on_tensor_device
def _layer_norm_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-> y, and for the backward pass mean and 1/deviation (B, L)."""
    B, L, W = x.shape
    x, (shift, scale) = x.contiguous(), same_rows(shift, scale)
    y = torch.empty_like(x)
    mean, rstd = (x.new_empty((B, L), dtype=torch.float32) for _ in range(2))
    _forward[(B * L,)](x, shift, scale, y, mean, rstd, L, W, scale.stride(0), EPS, **row_launch(W))
    return y, mean, rstd


@_layer_norm_modulate.register_fake
def _(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd


@torch.library.custom_op("audiox_trainer::layer_norm_modulate_backward", mutates_args=())
@on_tensor_device
def _layer_norm_modulate_backward(
    x: Tensor, dy: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """-> the gradients at x, shift and scale."""
    B, L, W = x.shape
    x, dy, (scale,) = x.contiguous(), dy.contiguous(), same_rows(scale)
    chunks = triton.cdiv(L, ROWS)
    dx = torch.empty_like(x)
    dshift, dscale = (x.new_empty((B, chunks, W), dtype=torch.float32) for _ in range(2))
    _backward[(B, chunks)](
        x, dy, scale, mean, rstd, dx, dshift, dscale, L, W, scale.stride(0), chunks, ROWS=ROWS, **row_launch(W)
    )
    return dx, dshift.sum(1), dscale.sum(1)


@_layer_norm_modulate_backward.register_fake
def _(x: Tensor, dy: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), scale.new_empty(scale.shape), scale.new_empty(scale.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    x, _, scale = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, scale, mean, rstd)


def _gradients(ctx: Any, dy: Tensor, _mean: Tensor, _rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, scale, mean, rstd = ctx.saved_tensors
    return _layer_norm_modulate_backward(x, dy, scale, mean, rstd)


_layer_norm_modulate.register_autograd(_gradients, setup_context=_save)
