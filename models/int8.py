"""Frozen weights in 8 bits: whole numbers from -127 to 127 and one float32 scale per row of a layer's outputs.

They are buffers, not parameters: nothing trains, shards, casts or saves them. Products are computed in the precision of
the inputs, and the scale is applied to their result, so a weight exists in more than 8 bits only while it is used.

O outputs, I inputs, B batch, N positions.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = 127
SMALLEST_SCALE = 1e-30  # of a row of zeros


class Int8Weight(nn.Module):
    """The weight (O, I) of a linear layer, or (O, I, kernel) of a convolution without strides."""

    values: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows = weight.detach().float().flatten(1)
        scale = (rows.abs().amax(1) / LARGEST).clamp_min(SMALLEST_SCALE)
        values = (rows / scale[:, None]).round().to(torch.int8).view(weight.shape)
        self.register_buffer("values", values, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Int8Weight":
        scale = self.scale
        super()._apply(fn, recurse)
        self.scale = scale.to(self.scale.device)  # float32, whatever the model is cast to
        return self

    def linear(self, x: Tensor) -> Tensor:
        """(…, I) -> (…, O)."""
        out: Tensor = _Linear.apply(x, self.values, self.scale)
        return out

    def conv1d(self, x: Tensor, padding: int) -> Tensor:
        """(B, I, N) -> (B, O, N + 2·padding - kernel + 1)."""
        out: Tensor = _Conv1d.apply(x, self.values, self.scale, padding)
        return out

    def restored(self) -> Tensor:
        """The weight in float32, with the error of 8 bits."""
        return (self.values.flatten(1) * self.scale[:, None]).view(self.values.shape)


class _Linear(torch.autograd.Function):
    """Keeps the 8-bit weight for the backward pass, where autograd would keep what it was converted to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(values, scale)
        return _scaled(F.linear(x, values.to(x.dtype)), scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        values, scale = ctx.saved_tensors
        return F.linear(_scaled(gradient, scale), values.to(gradient.dtype).t()), None, None


class _Conv1d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, scale: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(values, scale)
        ctx.padding = padding
        return _scaled(F.conv1d(x, values.to(x.dtype), padding=padding), scale[:, None])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        values, scale = ctx.saved_tensors
        scaled = _scaled(gradient, scale[:, None])
        return F.conv_transpose1d(scaled, values.to(gradient.dtype), padding=ctx.padding), None, None, None


def _scaled(x: Tensor, scale: Tensor) -> Tensor:
    return (x * scale).to(x.dtype)


class Int8Linear(nn.Module):
    """A frozen linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.int8, self.bias = Int8Weight(layer.weight), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) -> (…, O)."""
        return with_bias(self.int8.linear(x), self.bias)


class Int8Conv1d(nn.Module):
    """A frozen convolution."""

    def __init__(self, layer: nn.Conv1d) -> None:
        super().__init__()
        self.int8, self.bias, self.padding = Int8Weight(layer.weight), layer.bias, int(layer.padding[0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, N) -> (B, O, N + 2·padding - kernel + 1)."""
        return with_bias(self.int8.conv1d(x, self.padding), self.bias, 1)


def with_bias(x: Tensor, bias: Tensor | None, positions: int = 0) -> Tensor:
    """Adds a bias (O,) before the last `positions` dimensions."""
    return x if bias is None else x + bias[(...,) + (None,) * positions]


def quantized(layer: nn.Module) -> nn.Module | None:
    """The layer with an 8-bit weight; None where it is none of these layers, or is trained."""
    if type(layer) is nn.Linear and not layer.weight.requires_grad:
        return Int8Linear(layer)
    if type(layer) is nn.Conv1d and not layer.weight.requires_grad:
        plain = layer.stride == (1,) and layer.dilation == (1,) and layer.groups == 1 and layer.padding_mode == "zeros"
        return Int8Conv1d(layer) if plain and not isinstance(layer.padding, str) else None
    return None


def int8_tensors(model: nn.Module) -> Iterator[Tensor]:
    """The 8-bit weights of a model, each with its scales."""
    for module in model.modules():
        if isinstance(module, Int8Weight):
            yield from (module.values, module.scale)
