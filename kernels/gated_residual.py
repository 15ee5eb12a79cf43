"""Gated residual: x + gate·branch, alone and with the LayerNorm and modulation that follow it in a block.

B batch, L tokens, W width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .adaln import EPS, ROWS, layer_norm_backward, layer_norm_forward, layer_norm_modulate, row_launch, same_rows
from .device import on_tensor_device


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
    x, branch, gate, shift, scale, new, y, mean, rstd, L, W, sample_stride, eps, NORM: tl.constexpr, BLOCK: tl.constexpr
):
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
    new, branch, gate, scale, mean, rstd, dnew, dy, dx, dbranch, dgate, dshift, dscale, L, W, sample_stride, chunks,
    NORM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS tokens of one sample per program. new, branch, dnew, dy, dx, dbranch (B, L, W); dgate, dshift and dscale
    (B, chunks, W): sums over its tokens. Without NORM the gradient at x is dnew itself and dx is not written."""
    sample = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < W
    g = tl.load(gate + sample * sample_stride + column, mask=inside, other=0.0)
    factor = 1 + tl.load(scale + sample * sample_stride + column, mask=inside & NORM, other=0.0)
    sum_gate = tl.zeros((BLOCK,), tl.float32)
    sum_shift = tl.zeros((BLOCK,), tl.float32)
    sum_scale = tl.zeros((BLOCK,), tl.float32)
    for i in range(ROWS):
        token = chunk * ROWS + i
        if token < L:
            row = sample * L + token
            total = tl.load(dnew + row * W + column, mask=inside, other=0.0).to(tl.float32)
            b = tl.load(branch + row * W + column, mask=inside, other=0.0).to(tl.float32)
            if NORM:
                a = tl.load(new + row * W + column, mask=inside, other=0.0).to(tl.float32)
                h = tl.load(dy + row * W + column, mask=inside, other=0.0).to(tl.float32)
                normed, back = layer_norm_backward(a, h, factor, tl.load(mean + row), tl.load(rstd + row), W, inside)
                sum_shift += h
                sum_scale += h * normed
                total += back
                tl.store(dx + row * W + column, total.to(dx.dtype.element_ty), mask=inside)
            sum_gate += total * b
            tl.store(dbranch + row * W + column, (total * g).to(dbranch.dtype.element_ty), mask=inside)
    place = (sample * chunks + chunk) * W + column
    tl.store(dgate + place, sum_gate, mask=inside)
    if NORM:
        tl.store(dshift + place, sum_shift, mask=inside)
        tl.store(dscale + place, sum_scale, mask=inside)


@torch.library.custom_op("audiox_trainer::gated_residual", mutates_args=())
@on_tensor_device
def _gated_residual(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    B, L, W = x.shape
    x, branch, (gate,) = x.contiguous(), branch.contiguous(), same_rows(gate)
    new = torch.empty_like(x)
    nothing = (gate, gate, new, new, gate, gate)  # in the places of shift, scale, new, y, mean and rstd
    _forward[(B * L,)](x, branch, gate, *nothing, L, W, gate.stride(0), EPS, NORM=False, **row_launch(W))
    return new


@_gated_residual.register_fake
def _(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("audiox_trainer::gated_residual_backward", mutates_args=())
@on_tensor_device
def _gated_residual_backward(dnew: Tensor, branch: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """-> the gradients at branch and gate."""
    B, L, W = branch.shape
    dnew, branch, (gate,) = dnew.contiguous(), branch.contiguous(), same_rows(gate)
    chunks = triton.cdiv(L, ROWS)
    dbranch = torch.empty_like(branch)
    dgate = branch.new_empty((B, chunks, W), dtype=torch.float32)
    _backward[(B, chunks)](
        branch, branch, gate, gate, gate, gate, dnew, dnew, dbranch, dbranch, dgate, dgate, dgate, L, W, gate.stride(0),
        chunks, NORM=False, ROWS=ROWS, **row_launch(W),
    )  # fmt: skip
    return dbranch, dgate.sum(1)


@_gated_residual_backward.register_fake
def _(dnew: Tensor, branch: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    return branch.new_empty(branch.shape), gate.new_empty(gate.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    _, branch, gate = inputs
    ctx.save_for_backward(branch, gate)


def _gradients(ctx: Any, dnew: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return dnew, *_gated_residual_backward(dnew, *ctx.saved_tensors)


_gated_residual.register_autograd(_gradients, setup_context=_save)


@torch.library.custom_op("audiox_trainer::gated_residual_norm", mutates_args=())
@on_tensor_device
def _gated_residual_norm(
    x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> new x, y, and for the backward pass mean and 1/deviation (B, L)."""
    B, L, W = x.shape
    x, branch, (gate, shift, scale) = x.contiguous(), branch.contiguous(), same_rows(gate, shift, scale)
    new, y = torch.empty_like(x), torch.empty_like(x)
    mean, rstd = (x.new_empty((B, L), dtype=torch.float32) for _ in range(2))
    _forward[(B * L,)](
        x, branch, gate, shift, scale, new, y, mean, rstd, L, W, gate.stride(0), EPS, NORM=True, **row_launch(W)
    )
    return new, y, mean, rstd


@_gated_residual_norm.register_fake
def _(x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), x.new_empty(x.shape), mean, rstd


@torch.library.custom_op("audiox_trainer::gated_residual_norm_backward", mutates_args=())
@on_tensor_device
def _gated_residual_norm_backward(
    new: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, dnew: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """-> the gradients at x, branch, gate, shift and scale."""
    B, L, W = new.shape
    branch, dnew, dy, (gate, scale) = branch.contiguous(), dnew.contiguous(), dy.contiguous(), same_rows(gate, scale)
    chunks = triton.cdiv(L, ROWS)
    dx, dbranch = torch.empty_like(new), torch.empty_like(branch)
    dgate, dshift, dscale = (new.new_empty((B, chunks, W), dtype=torch.float32) for _ in range(3))
    _backward[(B, chunks)](
        new, branch, gate, scale, mean, rstd, dnew, dy, dx, dbranch, dgate, dshift, dscale, L, W, gate.stride(0),
        chunks, NORM=True, ROWS=ROWS, **row_launch(W),
    )  # fmt: skip
    return dx, dbranch, dgate.sum(1), dshift.sum(1), dscale.sum(1)


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
