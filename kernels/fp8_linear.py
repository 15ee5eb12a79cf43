"""Linear layers in 8-bit floats whose input a norm or SwiGLU writes in 8 bits itself, with a scale for each token.

B batch, L tokens, W width of a layer's input, V of its output. A kernel that holds a token's whole row finds its
largest value before the row leaves the registers. So the input is written once, in one byte per value, and never read
to be scaled. Forward, weights have a scale per output; backward, gradients have one per token, and weights one per
input. The weights' gradient, a sum over tokens, which have different scales, is computed in the gradient's own dtype
from the stored bytes.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from .adaln import EPS, _layer_norm_modulate_backward, layer_norm_modulate
from .device import on_tensor_device, triton_op, wrap_triton
from .gated_residual import gated_residual, gated_residual_triton
from .row_sums import load_rows, row_halves, store_rows
from .swiglu import _swiglu_backward, swiglu

FP8 = torch.float8_e4m3fn
LIMIT = 448.0  # its largest value
TINY = 1e-12  # for rows of zeros


class Modulated(NamedTuple):
    """The input LN(x)·(1 + scale) + shift of a linear layer, as `layer_norm_modulate` has it, not computed yet."""

    x: Tensor  # (B, L, W)
    shift: Tensor  # (B, W) float32
    scale: Tensor  # (B, W) float32


class Gated(NamedTuple):
    """The input silu(a)·b of a linear layer, as `swiglu` has it, not computed yet."""

    ab: Tensor  # (B, L, 2·W)


class Fp8Linear(nn.Linear):
    """A linear layer without bias whose product is in 8-bit floats. Its weight is that of `nn.Linear`."""

    def forward(self, input: Modulated | Gated) -> Tensor:  # type: ignore[override]
        """-> (B, L, V) in the dtype of the input's tensor."""
        if isinstance(input, Modulated):
            return _ModulatedLinear.apply(*input, self.weight)
        return _GatedLinear.apply(input.ab, self.weight)


def gated_residual_then_modulated(
    x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Modulated]:
    """`gated_residual_layer_norm_modulate` for a layer that computes the norm itself."""
    new = (gated_residual_triton if _on_gpu(x) else gated_residual)(x, branch, gate)
    return new, Modulated(new, shift, scale)


# ---- rows in 8 bits


def to_rows(y: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """y in 8 bits, and the scale along `dim`, in float32, that its values are to be multiplied with."""
    top = y.float().abs().amax(dim, keepdim=True).clamp_min(TINY)
    return (y.float() * (LIMIT / top)).clamp(-LIMIT, LIMIT).to(FP8), (top / LIMIT)


@triton.jit
def _store_row(
    y, row_scale, a, b, row, inside, W,
    LIMIT: tl.constexpr, TILE: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
):  # fmt: skip
    """Rows (TILE, LEFT) and (TILE, RIGHT) in float32 in 8 bits to y (·, W), with their scales."""
    left, right = tl.arange(0, LEFT)[None, :], LEFT + tl.arange(0, RIGHT)[None, :]
    largest = tl.max(tl.where(left < W, tl.abs(a), 0.0), 1)
    top = tl.maximum(tl.maximum(largest, tl.max(tl.where(right < W, tl.abs(b), 0.0), 1)), 1e-12)
    factor = (LIMIT / top)[:, None]
    a, b = tl.clamp(a * factor, -LIMIT, LIMIT), tl.clamp(b * factor, -LIMIT, LIMIT)
    store_rows(y, a, b, row, inside, W, TILE, LEFT, RIGHT)
    tl.store(row_scale + row, top / LIMIT, mask=inside)


@triton.jit
def _norm_rows(
    x, shift, scale, y, row_scale, mean, rstd, L, W, sample_stride, scale_stride, eps: tl.constexpr,
    LIMIT: tl.constexpr, TILE: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
):  # fmt: skip
    """One token per program (TILE is 1). x (B·L, W); shift, scale (B, W); y (B·L, W) in 8 bits; row_scale, mean and
    1/deviation rstd (B·L,)."""
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, TILE)
    inside = tl.full((TILE,), True, tl.int1)
    sample = tl.program_id(0).to(tl.int64) // L
    left, right = tl.arange(0, LEFT)[None, :], LEFT + tl.arange(0, RIGHT)[None, :]
    a, b = load_rows(x, row, inside, W, TILE, LEFT, RIGHT)
    m = (tl.sum(a, 1) + tl.sum(b, 1)) / W
    a, b = tl.where(left < W, a - m[:, None], 0.0), tl.where(right < W, b - m[:, None], 0.0)
    r = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / W + eps)
    scales, shifts = scale + sample * scale_stride, shift + sample * sample_stride
    a = a * r[:, None] * (1 + tl.load(scales + left, mask=left < W, other=0.0))
    b = b * r[:, None] * (1 + tl.load(scales + right, mask=right < W, other=0.0))
    a += tl.load(shifts + left, mask=left < W, other=0.0)
    b += tl.load(shifts + right, mask=right < W, other=0.0)
    _store_row(y, row_scale, a, b, row, inside, W, LIMIT, TILE, LEFT, RIGHT)
    tl.store(mean + row, m)
    tl.store(rstd + row, r)


@triton.jit
def _swiglu_rows(ab, y, row_scale, W, LIMIT: tl.constexpr, TILE: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """One token per program (TILE is 1). ab (N, 2·W), y (N, W) in 8 bits, row_scale (N,)."""
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, TILE)
    inside = tl.full((TILE,), True, tl.int1)
    a_left, a_right = load_rows(ab, 2 * row, inside, W, TILE, LEFT, RIGHT)
    b_left, b_right = load_rows(ab, 2 * row + 1, inside, W, TILE, LEFT, RIGHT)
    a, b = a_left * tl.sigmoid(a_left) * b_left, a_right * tl.sigmoid(a_right) * b_right
    _store_row(y, row_scale, a, b, row, inside, W, LIMIT, TILE, LEFT, RIGHT)


def _launch(W: int) -> dict[str, int]:
    """Constants of a kernel that holds one token of W values: eight to sixteen a thread."""
    halves = row_halves(W, 1)
    del halves["CHUNKS"]
    return halves | {"num_warps": min(16, max(1, halves["LEFT"] // 256))}


@triton_op("audiox_trainer::norm_rows")
@on_tensor_device
def _norm_rows_triton(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> LN(x)·(1 + scale) + shift in 8 bits (B, L, W), its scales (B, L, 1), and mean and 1/deviation (B, L)."""
    B, L, W = x.shape
    x = x.contiguous()
    shift, scale = (m if m.stride(1) == 1 else m.contiguous() for m in (shift, scale))
    y, row_scale = x.new_empty((B, L, W), dtype=FP8), x.new_empty((B, L, 1), dtype=torch.float32)
    mean, rstd = (x.new_empty((B, L), dtype=torch.float32) for _ in range(2))
    wrap_triton(_norm_rows)[(B * L,)](
        x, shift, scale, y, row_scale, mean, rstd, L, W, shift.stride(0), scale.stride(0), EPS, LIMIT, **_launch(W)
    )
    return y, row_scale, mean, rstd


@_norm_rows_triton.register_fake
def _(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape, dtype=FP8), x.new_empty((*x.shape[:2], 1), dtype=torch.float32), mean, rstd


@triton_op("audiox_trainer::swiglu_rows")
@on_tensor_device
def _swiglu_rows_triton(ab: Tensor) -> tuple[Tensor, Tensor]:
    """-> silu(a)·b in 8 bits (B, L, W), its scales (B, L, 1)."""
    ab, (B, L, double) = ab.contiguous(), ab.shape
    y, row_scale = ab.new_empty((B, L, double // 2), dtype=FP8), ab.new_empty((B, L, 1), dtype=torch.float32)
    wrap_triton(_swiglu_rows)[(B * L,)](ab, y, row_scale, double // 2, LIMIT, **_launch(double // 2))
    return y, row_scale


@_swiglu_rows_triton.register_fake
def _(ab: Tensor) -> tuple[Tensor, Tensor]:
    shape = (*ab.shape[:2], ab.shape[2] // 2)
    return ab.new_empty(shape, dtype=FP8), ab.new_empty((*ab.shape[:2], 1), dtype=torch.float32)


# ---- products


def _on_gpu(x: Tensor) -> bool:
    return x.device.type == "cuda"


def product(a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor, dtype: torch.dtype) -> Tensor:
    """a (B, L, W) and b (V, W) in 8 bits with scales (B, L, 1) and (V, 1) -> a·bᵀ (B, L, V). Emulated without a GPU."""
    if a.device.type != "cuda":
        return F.linear(a.float() * scale_a, b.float() * scale_b).to(dtype)
    flat = torch._scaled_mm(
        a.flatten(0, 1), b.t(), scale_a=scale_a.flatten(0, 1), scale_b=scale_b.t(), out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )  # fmt: skip
    return flat.unflatten(0, a.shape[:2]).to(dtype)


def _input_gradient(dout: Tensor, weight: Tensor) -> Tensor:
    """dout (B, L, V) and the weight (V, W) -> the gradient (B, L, W) at the layer's input."""
    columns = weight.t().contiguous()  # (W, V)
    return product(*to_rows(dout), *to_rows(columns), dout.dtype)


def _weight_gradient(dout: Tensor, y: Tensor, row_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """-> (V, W), from the layer's input y in 8 bits."""
    wide = (y.float() * row_scale).to(dout.dtype)
    return (dout.flatten(0, 1).t() @ wide.flatten(0, 1)).to(dtype)


class _ModulatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
        if _on_gpu(x):
            y, row_scale, mean, rstd = _norm_rows_triton(x, shift, scale)
        else:
            wide = x.float()
            mean, rstd = wide.mean(-1), (wide.var(-1, unbiased=False) + EPS).rsqrt()
            y, row_scale = to_rows(layer_norm_modulate(wide, shift, scale))
        ctx.save_for_backward(x, scale, weight, y, row_scale, mean, rstd)
        return product(y, row_scale, *to_rows(weight), x.dtype)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, scale, weight, y, row_scale, mean, rstd = ctx.saved_tensors
        dy = _input_gradient(dout, weight)
        if _on_gpu(x):
            dx, dshift, dscale = _layer_norm_modulate_backward(x, dy, scale, mean, rstd)
        else:
            normed, wide = (x.float() - mean.unsqueeze(-1)) * rstd.unsqueeze(-1), dy.float()
            h = wide * (1 + scale.unsqueeze(1))
            along = h.mean(-1, keepdim=True) + normed * (h * normed).mean(-1, keepdim=True)
            dx = (rstd.unsqueeze(-1) * (h - along)).to(x.dtype)
            dshift, dscale = wide.sum(1), (wide * normed).sum(1)
        return dx, dshift, dscale, _weight_gradient(dout, y, row_scale, weight.dtype)


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ab: Tensor, weight: Tensor) -> Tensor:
        y, row_scale = _swiglu_rows_triton(ab) if _on_gpu(ab) else to_rows(swiglu(ab.float()))
        ctx.save_for_backward(ab, weight, y, row_scale)
        return product(y, row_scale, *to_rows(weight), ab.dtype)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor]:
        ab, weight, y, row_scale = ctx.saved_tensors
        dy = _input_gradient(dout, weight)
        if _on_gpu(ab):
            dab = _swiglu_backward(ab, dy)
        else:
            a, b = ab.float().chunk(2, -1)
            sigmoid, g = a.sigmoid(), dy.float()
            dab = torch.cat((g * b * sigmoid * (1 + a * (1 - sigmoid)), g * a * sigmoid), -1).to(ab.dtype)
        return dab, _weight_gradient(dout, y, row_scale, weight.dtype)
