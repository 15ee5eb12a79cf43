"""The operations of a transformer block as a set of functions, and the implementations of each."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from .adaln import layer_norm_modulate, layer_norm_modulate_triton
from .concatenated_attention import flash_function, joint_attention_cudnn, joint_attention_flash, joint_attention_sdpa
from .device import make_operators
from .gated_residual import (
    gated_residual,
    gated_residual_layer_norm_modulate,
    gated_residual_layer_norm_modulate_triton,
    gated_residual_triton,
)
from .joint_attention import StreamInput, head_error, joint_attention, joint_attention_triton
from .swiglu import swiglu, swiglu_triton


@dataclass(frozen=True)
class Ops:
    """The functions that a block calls. The reference implementations document their shapes. What goes into a linear
    layer may be left for that layer to compute (`fp8_linear.Modulated` and `Gated`)."""

    joint_attention: Callable[[StreamInput, StreamInput, Tensor | None], tuple[Tensor, Tensor]]
    layer_norm_modulate: Callable[[Tensor, Tensor, Tensor], Any]
    gated_residual: Callable[[Tensor, Tensor, Tensor], Tensor]
    gated_residual_layer_norm_modulate: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Any]]
    swiglu: Callable[[Tensor], Any]


REFERENCE = Ops(joint_attention, layer_norm_modulate, gated_residual, gated_residual_layer_norm_modulate, swiglu)


@dataclass(frozen=True)
class KernelsConfig:
    """The implementation of each operation by name; "auto" is the fastest of those that run here."""

    joint_attention: Literal["auto", "triton", "flash", "cudnn", "sdpa", "reference"] = "auto"
    layer_norm_modulate: Literal["auto", "triton", "reference"] = "auto"
    gated_residual: Literal["auto", "triton", "reference"] = "auto"
    gated_residual_layer_norm_modulate: Literal["auto", "triton", "reference"] = "auto"
    swiglu: Literal["auto", "triton", "reference"] = "auto"
    benchmark_file: str = ""  # JSON of `launch/bench.py kernels`, which "auto" then follows; otherwise it measures


OLDEST = (8, 0)  # compute capability: bfloat16 products
OPS = tuple(field.name for field in fields(Ops))

# In the order in which "auto" prefers them if they are equally fast.
BACKENDS: dict[str, dict[str, Callable[..., Any]]] = {
    "joint_attention": {
        "triton": joint_attention_triton,
        "flash": joint_attention_flash,
        "cudnn": joint_attention_cudnn,
        "sdpa": joint_attention_sdpa,
        "reference": joint_attention,
    },
    "layer_norm_modulate": {
        "triton": layer_norm_modulate_triton,
        "reference": layer_norm_modulate,
    },
    "gated_residual": {
        "triton": gated_residual_triton,
        "reference": gated_residual,
    },
    "gated_residual_layer_norm_modulate": {
        "triton": gated_residual_layer_norm_modulate_triton,
        "reference": gated_residual_layer_norm_modulate,
    },
    "swiglu": {"triton": swiglu_triton, "reference": swiglu},
}


def missing(backend: str, device: torch.device, dtype: torch.dtype, head: int = 0) -> str:
    """The reason why a backend cannot run, and the remedy; empty if it can. `head` is the width of a joint attention's
    heads, 0 for other operations."""
    if backend in ("sdpa", "reference"):
        return ""
    if device.type != "cuda":
        return "needs an NVIDIA GPU; 'reference' runs everywhere"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < OLDEST:
        return "needs a GPU from Ampere (compute capability 8.0) on; 'reference' runs everywhere"
    if backend == "triton" and head and (error := head_error(head)):
        return f"{error}; take 'sdpa' or 'cudnn'"
    if backend in ("flash", "cudnn") and dtype == torch.float32:
        return "computes in bfloat16 or float16, this run in float32; set its precision to bf16, or take 'triton'"
    if backend == "cudnn" and not torch.backends.cudnn.is_available():
        return "needs a build of torch with cuDNN, as the ones for CUDA on PyPI have"
    if backend == "flash":
        try:
            flash_function()
        except ImportError:
            return "needs flash-attn: pip install flash-attn --no-build-isolation (any of its versions 2, 3, 4)"
    return ""


def available(op: str, device: torch.device, dtype: torch.dtype, head: int = 0) -> list[str]:
    """Backends of an operation that can run, in order of preference."""
    head = head if op == "joint_attention" else 0
    return [backend for backend in BACKENDS[op] if not missing(backend, device, dtype, head)]


def resolve(names: dict[str, str]) -> Ops:
    """The functions of one backend for each operation. Kernels are ready for torch.compile afterwards."""
    if torch.cuda.is_available() or "triton" in names.values():
        make_operators()
    return Ops(**{op: BACKENDS[op][names[op]] for op in OPS})
