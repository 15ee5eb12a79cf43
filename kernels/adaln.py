"""LayerNorm followed by modulation (adaLN): y = LN(x)·(1 + scale) + shift, without learnt affine parameters.

B batch, L tokens, W width. Statistics are taken in float32 and the result is cast once.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .device import on_tensor_device, triton_op, wrap_triton
from .row_sums import (
    Chunks,
    add_chunks,
    is_last,
    layer_norm_backward,
    load_modulation,
    load_rows,
    row_halves,
    store_rows,
    store_sums,
)

EPS = 1e-6


def layer_norm_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, L, W), shift and scale (B, W) in float32 -> (B, L, W) in the dtype of x."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = F.layer_norm(wide, (x.shape[-1],), eps=EPS)
    return (normed * (1 + scale.unsqueeze(1))).add_(shift.unsqueeze(1)).to(x.dtype)


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
def _forward(x, shift, scale, y, mean, rstd, L, W, sample_stride, eps: tl.constexpr, BLOCK: tl.constexpr):
    """One token per program. x, y (B·L, W); shift, scale (B, W), rows `sample_stride` apart; mean, rstd (B·L,)."""
    row = tl.program_id(0).to(tl.int64)
    sample = row // L
    column = tl.arange(0, BLOCK)
    inside = column < W
    a = tl.load(x + row * W + column, mask=inside, other=0.0).to(tl.float32)
    layer_norm_forward(a, shift, scale, y, mean, rstd, row, sample * sample_stride, column, inside, W, eps)


@triton.jit
def _backward(
    x, dy, scale, mean, rstd, dx, sums, dshift, dscale, arrived, L, W, sample_stride, rows,
    TILE: tl.constexpr, STAGES: tl.constexpr, CHUNKS: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
):  # fmt: skip
    """`rows` tokens of one sample per program. x, dy, dx (B, L, W); sums (2, B, chunks, W) over a program's tokens. The
    last program of a sample adds them up: dshift, dscale (B, W). arrived (B,) begins with zeros."""
    sample, chunk, chunks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    scale_a, scale_b = load_modulation(scale + sample * sample_stride, W, LEFT, RIGHT)
    fa, fb = 1 + scale_a, 1 + scale_b
    shift_a, shift_b = tl.zeros((TILE, LEFT), tl.float32), tl.zeros((TILE, RIGHT), tl.float32)
    sum_a, sum_b = tl.zeros((TILE, LEFT), tl.float32), tl.zeros((TILE, RIGHT), tl.float32)
    end = tl.minimum(chunk * rows + rows, L)
    for first in tl.range(chunk * rows, end, TILE, num_stages=STAGES):
        token = first + tl.arange(0, TILE)
        row, inside = sample * L + token, token < end
        xa, xb = load_rows(x, row, inside, W, TILE, LEFT, RIGHT)
        ga, gb = load_rows(dy, row, inside, W, TILE, LEFT, RIGHT)
        m = tl.load(mean + row, mask=inside, other=0.0)[:, None]
        r = tl.load(rstd + row, mask=inside, other=0.0)[:, None]
        na, nb, da, db = layer_norm_backward(xa, xb, ga, gb, fa, fb, m, r, W)
        store_rows(dx, da, db, row, inside, W, TILE, LEFT, RIGHT)
        shift_a += ga
        shift_b += gb
        sum_a += ga * na
        sum_b += gb * nb
    mine = sums + (sample * chunks + chunk) * W
    plane = tl.num_programs(0).to(tl.int64) * chunks * W
    store_sums(mine, shift_a, shift_b, W, LEFT, RIGHT)
    store_sums(mine + plane, sum_a, sum_b, W, LEFT, RIGHT)
    if is_last(arrived + sample, chunks):
        of_sample = sums + sample * chunks * W
        add_chunks(of_sample, dshift + sample * W, chunks, W, CHUNKS, LEFT, RIGHT)
        add_chunks(of_sample + plane, dscale + sample * W, chunks, W, CHUNKS, LEFT, RIGHT)


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


@triton_op("audiox_trainer::layer_norm_modulate")
@on_tensor_device
def _layer_norm_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-> y, and for the backward pass mean and 1/deviation (B, L)."""
    B, L, W = x.shape
    x, (shift, scale) = x.contiguous(), same_rows(shift, scale)
    y = torch.empty_like(x)
    mean, rstd = (x.new_empty((B, L), dtype=torch.float32) for _ in range(2))
    wrap_triton(_forward)[(B * L,)](x, shift, scale, y, mean, rstd, L, W, scale.stride(0), EPS, **row_launch(W))
    return y, mean, rstd


@_layer_norm_modulate.register_fake
def _(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd


@triton_op("audiox_trainer::layer_norm_modulate_backward")
@on_tensor_device
def _layer_norm_modulate_backward(
    x: Tensor, dy: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """-> the gradients at x, shift and scale."""
    B, L, W = x.shape
    x, dy, (scale,) = x.contiguous(), dy.contiguous(), same_rows(scale)
    chunks = Chunks.of(x, tile=1)
    sums = x.new_empty((2, B, chunks.chunks, W), dtype=torch.float32)
    arrived = x.new_zeros(B, dtype=torch.int32)
    dx = torch.empty_like(x)
    dshift, dscale = (x.new_empty((B, W), dtype=torch.float32) for _ in range(2))
    wrap_triton(_backward)[(B, chunks.chunks)](
        x, dy, scale, mean, rstd, dx, sums, dshift, dscale, arrived, L, W, scale.stride(0), chunks.rows,
        STAGES=3, **row_halves(W, chunks.tile),
    )  # fmt: skip
    return dx, dshift, dscale


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
