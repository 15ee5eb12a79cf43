"""SwiGLU: silu(a)·b for a and b packed side by side, as they come out of one projection."""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .device import on_tensor_device, triton_op, wrap_triton

BLOCK = 1024  # values of the hidden layer per program


def swiglu(ab: Tensor) -> Tensor:
    """ab (..., 2·hidden) -> (..., hidden)."""
    a, b = ab.chunk(2, dim=-1)
    return F.silu(a) * b


def swiglu_triton(ab: Tensor) -> Tensor:
    """`swiglu` in one pass, and in one pass backward that writes the packed gradient; inner values in float32."""
    return _swiglu(ab)


@triton.jit
def _forward(ab, y, hidden, BLOCK: tl.constexpr):
    """BLOCK values of one token per program. ab (N, 2·hidden), y (N, hidden)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < hidden
    a = tl.load(ab + row * 2 * hidden + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(ab + row * 2 * hidden + hidden + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * hidden + column, (a * tl.sigmoid(a) * b).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(ab, dy, dab, hidden, BLOCK: tl.constexpr):
    """BLOCK values of one token per program. ab as in `_forward`, dy (N, hidden), dab (N, 2·hidden)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < hidden
    a = tl.load(ab + row * 2 * hidden + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(ab + row * 2 * hidden + hidden + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(dy + row * hidden + column, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(a)
    da = g * b * sigmoid * (1 + a * (1 - sigmoid))
    tl.store(dab + row * 2 * hidden + column, da.to(dab.dtype.element_ty), mask=inside)
    tl.store(dab + row * 2 * hidden + hidden + column, (g * a * sigmoid).to(dab.dtype.element_ty), mask=inside)


@triton_op("audiox_trainer::swiglu")
@on_tensor_device
def _swiglu(ab: Tensor) -> Tensor:
    ab, hidden = ab.contiguous(), ab.shape[-1] // 2
    y = ab.new_empty((*ab.shape[:-1], hidden))
    wrap_triton(_forward)[(y.numel() // hidden, triton.cdiv(hidden, BLOCK))](ab, y, hidden, BLOCK=BLOCK)
    return y


@_swiglu.register_fake
def _(ab: Tensor) -> Tensor:
    return ab.new_empty((*ab.shape[:-1], ab.shape[-1] // 2))


@triton_op("audiox_trainer::swiglu_backward")
@on_tensor_device
def _swiglu_backward(ab: Tensor, dy: Tensor) -> Tensor:
    ab, dy = ab.contiguous(), dy.contiguous()
    dab, hidden = torch.empty_like(ab), dy.shape[-1]
    wrap_triton(_backward)[(dy.numel() // hidden, triton.cdiv(hidden, BLOCK))](ab, dy, dab, hidden, BLOCK=BLOCK)
    return dab


@_swiglu_backward.register_fake
def _(ab: Tensor, dy: Tensor) -> Tensor:
    return ab.new_empty(ab.shape)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dy: Tensor) -> Tensor:
    return _swiglu_backward(*ctx.saved_tensors, dy)


_swiglu.register_autograd(_gradients, setup_context=_save)
