"""Gated residual: x + gate·branch, alone and with the LayerNorm and modulation that follow it in a block.

B batch, L tokens, W width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .adaln import EPS, layer_norm_forward, layer_norm_modulate, row_launch, same_rows
from .device import on_tensor_device, triton_op, wrap_triton
from .row_sums import (
    CHUNKS,
    Chunks,
    add_chunks,
    add_columns,
    is_last,
    layer_norm_backward,
    load_modulation,
    load_rows,
    row_halves,
    store_rows,
    store_sums,
)

COLUMNS = 512  # that a program of the plain residual's backward pass takes


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """x and branch (B, L, W), gate (B, W) in float32 -> (B, L, W) in the dtype of x."""
    return (x + gate.unsqueeze(1) * branch).to(x.dtype)


def gated_residual_layer_norm_modulate(
    x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """x and branch (B, L, W), gate, shift and scale (B, W) in float32 -> new x, its modulated norm, (B, L, W) each."""
    x = gated_residual(x, branch, gate)
    return x, layer_norm_modulate(x, shift, scale)


def gated_residual_triton(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """`gated_residual` in one pass forward and one backward, which reads only the gradient and the branch."""
    return _gated_residual(x, branch, gate)


def gated_residual_layer_norm_modulate_triton(
    x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """`gated_residual_layer_norm_modulate` in one pass forward and one backward: the new x is normed before it
    leaves the registers. Its statistics are those of the stored x, in its dtype."""
    new, y, _, _ = _gated_residual_norm(x, branch, gate, shift, scale)
    return new, y


@triton.jit
def _forward(
    x, branch, gate, shift, scale, new, y, mean, rstd, L, W, sample_stride,
    eps: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token per program. x, branch, new, y (B·L, W); gate, shift, scale (B, W), rows `sample_stride` apart; mean,
    rstd (B·L,). Without NORM only `new` is written."""
    row = tl.program_id(0).to(tl.int64)
    sample = row // L
    column = tl.arange(0, BLOCK)
    inside = column < W
    a = tl.load(x + row * W + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(branch + row * W + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + sample * sample_stride + column, mask=inside, other=0.0)
    stored = (a + g * b).to(new.dtype.element_ty)
    tl.store(new + row * W + column, stored, mask=inside)
    if NORM:
        a = stored.to(tl.float32)
        layer_norm_forward(a, shift, scale, y, mean, rstd, row, sample * sample_stride, column, inside, W, eps)


@triton.jit
def _backward(
    dnew, branch, gate, dbranch, sums, dgate, arrived, L, W, sample_stride, rows,
    TILE: tl.constexpr, COLUMNS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """COLUMNS of `rows` tokens of one sample per program, TILE tokens at a time. dnew, branch, dbranch (B, L, W); sums
    (B, chunks, W) over a program's tokens, which the last one of a sample adds up: dgate (B, W). arrived (B, blocks of
    columns) begins with zeros. The gradient at x is dnew itself."""
    sample, chunk, chunks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < W
    g = tl.load(gate + sample * sample_stride + column, mask=inside, other=0.0)[None, :]
    sum_gate = tl.zeros((TILE, COLUMNS), tl.float32)
    end = tl.minimum(chunk * rows + rows, L)
    for first in range(chunk * rows, end, TILE):
        token = first + tl.arange(0, TILE)[:, None]
        place, mask = (sample * L + token) * W + column[None, :], (token < end) & inside[None, :]
        total = tl.load(dnew + place, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(branch + place, mask=mask, other=0.0).to(tl.float32)
        sum_gate += total * b
        tl.store(dbranch + place, (total * g).to(dbranch.dtype.element_ty), mask=mask)
    tl.store(sums + (sample * chunks + chunk) * W + column, tl.sum(sum_gate, 0), mask=inside)
    if is_last(arrived + sample * tl.num_programs(2) + tl.program_id(2), chunks):
        add_columns(sums + sample * chunks * W, dgate + sample * W, column, chunks, W, CHUNKS)


@triton.jit
def _backward_norm(
    new, branch, gate, scale, mean, rstd, dnew, dy, dx, dbranch, sums, dgate, dshift, dscale, arrived,
    L, W, sample_stride, rows,
    TILE: tl.constexpr, STAGES: tl.constexpr, CHUNKS: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
):  # fmt: skip
    """`rows` tokens of one sample per program, as in `adaln._backward`. new, branch, dnew, dy, dx, dbranch (B, L, W);
    sums (3, B, chunks, W); dgate, dshift and dscale (B, W)."""
    sample, chunk, chunks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    gate_a, gate_b = load_modulation(gate + sample * sample_stride, W, LEFT, RIGHT)
    scale_a, scale_b = load_modulation(scale + sample * sample_stride, W, LEFT, RIGHT)
    fa, fb = 1 + scale_a, 1 + scale_b
    shift_a, shift_b = tl.zeros((TILE, LEFT), tl.float32), tl.zeros((TILE, RIGHT), tl.float32)
    scaled_a, scaled_b = tl.zeros((TILE, LEFT), tl.float32), tl.zeros((TILE, RIGHT), tl.float32)
    gated_a, gated_b = tl.zeros((TILE, LEFT), tl.float32), tl.zeros((TILE, RIGHT), tl.float32)
    end = tl.minimum(chunk * rows + rows, L)
    for first in tl.range(chunk * rows, end, TILE, num_stages=STAGES):
        token = first + tl.arange(0, TILE)
        row, inside = sample * L + token, token < end
        xa, xb = load_rows(new, row, inside, W, TILE, LEFT, RIGHT)
        ga, gb = load_rows(dy, row, inside, W, TILE, LEFT, RIGHT)
        m = tl.load(mean + row, mask=inside, other=0.0)[:, None]
        r = tl.load(rstd + row, mask=inside, other=0.0)[:, None]
        na, nb, da, db = layer_norm_backward(xa, xb, ga, gb, fa, fb, m, r, W)
        shift_a += ga
        shift_b += gb
        scaled_a += ga * na
        scaled_b += gb * nb
        ta, tb = load_rows(dnew, row, inside, W, TILE, LEFT, RIGHT)
        ta += da
        tb += db
        store_rows(dx, ta, tb, row, inside, W, TILE, LEFT, RIGHT)
        ba, bb = load_rows(branch, row, inside, W, TILE, LEFT, RIGHT)
        store_rows(dbranch, ta * gate_a, tb * gate_b, row, inside, W, TILE, LEFT, RIGHT)
        gated_a += ta * ba
        gated_b += tb * bb
    mine = sums + (sample * chunks + chunk) * W
    plane = tl.num_programs(0).to(tl.int64) * chunks * W
    store_sums(mine, gated_a, gated_b, W, LEFT, RIGHT)
    store_sums(mine + plane, shift_a, shift_b, W, LEFT, RIGHT)
    store_sums(mine + 2 * plane, scaled_a, scaled_b, W, LEFT, RIGHT)
    if is_last(arrived + sample, chunks):
        of_sample = sums + sample * chunks * W
        add_chunks(of_sample, dgate + sample * W, chunks, W, CHUNKS, LEFT, RIGHT)
        add_chunks(of_sample + plane, dshift + sample * W, chunks, W, CHUNKS, LEFT, RIGHT)
        add_chunks(of_sample + 2 * plane, dscale + sample * W, chunks, W, CHUNKS, LEFT, RIGHT)


@triton_op("audiox_trainer::gated_residual")
@on_tensor_device
def _gated_residual(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    B, L, W = x.shape
    x, branch, (gate,) = x.contiguous(), branch.contiguous(), same_rows(gate)
    new = torch.empty_like(x)
    nothing = (gate, gate, new, new, gate, gate)  # in the places of shift, scale, new, y, mean and rstd
    wrap_triton(_forward)[(B * L,)](x, branch, gate, *nothing, L, W, gate.stride(0), EPS, NORM=False, **row_launch(W))
    return new


@_gated_residual.register_fake
def _(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@triton_op("audiox_trainer::gated_residual_backward")
@on_tensor_device
def _gated_residual_backward(dnew: Tensor, branch: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """-> the gradients at branch and gate."""
    B, L, W = branch.shape
    dnew, branch, (gate,) = dnew.contiguous(), branch.contiguous(), same_rows(gate)
    blocks, chunks = triton.cdiv(W, COLUMNS), Chunks.of(branch, tile=8)
    dbranch, dgate = torch.empty_like(branch), branch.new_empty((B, W), dtype=torch.float32)
    sums = branch.new_empty((B, chunks.chunks, W), dtype=torch.float32)
    arrived = branch.new_zeros((B, blocks), dtype=torch.int32)
    wrap_triton(_backward)[(B, chunks.chunks, blocks)](
        dnew, branch, gate, dbranch, sums, dgate, arrived, L, W, gate.stride(0), chunks.rows,
        TILE=chunks.tile, COLUMNS=COLUMNS, CHUNKS=CHUNKS,
    )  # fmt: skip
    return dbranch, dgate


@_gated_residual_backward.register_fake
def _(dnew: Tensor, branch: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    return branch.new_empty(branch.shape), gate.new_empty(gate.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    _, branch, gate = inputs
    ctx.save_for_backward(branch, gate)


def _gradients(ctx: Any, dnew: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return dnew, *_gated_residual_backward(dnew, *ctx.saved_tensors)


_gated_residual.register_autograd(_gradients, setup_context=_save)


@triton_op("audiox_trainer::gated_residual_norm")
@on_tensor_device
def _gated_residual_norm(
    x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> new x, y, and for the backward pass mean and 1/deviation (B, L)."""
    B, L, W = x.shape
    x, branch, (gate, shift, scale) = x.contiguous(), branch.contiguous(), same_rows(gate, shift, scale)
    new, y = torch.empty_like(x), torch.empty_like(x)
    mean, rstd = (x.new_empty((B, L), dtype=torch.float32) for _ in range(2))
    wrap_triton(_forward)[(B * L,)](
        x, branch, gate, shift, scale, new, y, mean, rstd, L, W, gate.stride(0), EPS, NORM=True, **row_launch(W)
    )
    return new, y, mean, rstd


@_gated_residual_norm.register_fake
def _(x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), x.new_empty(x.shape), mean, rstd


@triton_op("audiox_trainer::gated_residual_norm_backward")
@on_tensor_device
def _gated_residual_norm_backward(
    new: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, dnew: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """-> the gradients at x, branch, gate, shift and scale."""
    B, L, W = new.shape
    branch, dnew, dy, (gate, scale) = branch.contiguous(), dnew.contiguous(), dy.contiguous(), same_rows(gate, scale)
    chunks = Chunks.of(new, tile=1)
    dx, dbranch = torch.empty_like(new), torch.empty_like(branch)
    sums = new.new_empty((3, B, chunks.chunks, W), dtype=torch.float32)
    arrived = new.new_zeros(B, dtype=torch.int32)
    dgate, dshift, dscale = (new.new_empty((B, W), dtype=torch.float32) for _ in range(3))
    wrap_triton(_backward_norm)[(B, chunks.chunks)](
        new, branch, gate, scale, mean, rstd, dnew, dy, dx, dbranch, sums, dgate, dshift, dscale, arrived,
        L, W, gate.stride(0), chunks.rows, STAGES=3, **row_halves(W, chunks.tile),
    )  # fmt: skip
    return dx, dbranch, dgate, dshift, dscale


@_gated_residual_norm_backward.register_fake
def _(
    new: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, dnew: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dgate, dshift, dscale = (gate.new_empty(gate.shape) for _ in range(3))
    return new.new_empty(new.shape), branch.new_empty(branch.shape), dgate, dshift, dscale


def _save_norm(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    _, branch, gate, _, scale = inputs
    new, _, mean, rstd = output
    ctx.save_for_backward(new, branch, gate, scale, mean, rstd)


def _gradients_norm(ctx: Any, dnew: Tensor, dy: Tensor, _mean: Tensor, _rstd: Tensor) -> tuple[Tensor, ...]:
    return _gated_residual_norm_backward(*ctx.saved_tensors, dnew, dy)


_gated_residual_norm.register_autograd(_gradients_norm, setup_context=_save_norm)
