"""The casts to 8-bit floats around a block's operations in a run with FP8, with which operations are timed together.

A product's input and the gradient at its output are cast, with one scale per tensor: the largest value is found first.
A compiler can find it in the kernel that computes the tensor, if that kernel is its own. torchao casts for real; here
the rounded values go on in the dtype that they had, which costs every implementation the same.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...kernels.joint_attention import StreamInput

VALUES, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2


def rounded(x: Tensor, kind: torch.dtype) -> Tensor:
    """x as an 8-bit float holds it, with one scale per tensor."""
    limit = torch.finfo(kind).max
    scale = limit / x.abs().amax().float().clamp_min(1e-12)
    return ((x.float() * scale).clamp(-limit, limit).to(kind).float() / scale).to(x.dtype)


class _Product(torch.autograd.Function):
    """The input of a product: cast forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return rounded(x, VALUES)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _OfProduct(torch.autograd.Function):
    """The output of a product: its gradient is cast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return rounded(gradient, GRADIENTS)


def product(x: Tensor) -> Tensor:
    y: Tensor = _Product.apply(x)
    return y


def of_product(x: Tensor) -> Tensor:
    y: Tensor = _OfProduct.apply(x)
    return y


def with_casts(op: str, implementation: Callable[..., Any]) -> Callable[..., Any]:
    """An implementation of an operation between the products that come before and after it in a block."""

    def norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return product(implementation(x, shift, scale))

    def residual(x: Tensor, branch: Tensor, gate: Tensor) -> Any:
        return implementation(x, of_product(branch), gate)

    def residual_norm(x: Tensor, branch: Tensor, *modulation: Tensor) -> tuple[Tensor, Tensor]:
        new, y = implementation(x, of_product(branch), *modulation)
        return new, product(y)

    def swiglu(ab: Tensor) -> Tensor:
        return product(implementation(of_product(ab)))

    def attention(latent: StreamInput, condition: StreamInput, length: Tensor | None) -> tuple[Tensor, Tensor]:
        streams = (replace(stream, qkv=of_product(stream.qkv)) for stream in (latent, condition))
        x, c = implementation(*streams, length)
        return product(x), product(c)

    kinds: dict[str, Callable[..., Any]] = {
        "layer_norm_modulate": norm,
        "gated_residual": residual,
        "gated_residual_layer_norm_modulate": residual_norm,
        "swiglu": swiglu,
        "joint_attention": attention,
    }
    return kinds[op]
