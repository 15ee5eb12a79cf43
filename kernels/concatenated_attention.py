"""Joint attention by libraries that know one sequence: concatenate both streams, attend, split them again.

Shapes as in `joint_attention.py`.
"""

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .attention import padding_mask
from .joint_attention import StreamInput

# Modules with flash-attn's function for sequences of different lengths: version 3 (Hopper), 4, 2.
FLASH = ("flash_attn_interface", "flash_attn.cute", "flash_attn")

Varlen = Callable[..., Tensor | tuple[Tensor, ...]]
_flash_function: list[Varlen] = []  # once it has been imported: compiled code holds it as a constant


def joint_attention_sdpa(
    latent: StreamInput, condition: StreamInput, condition_length: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Use `scaled_dot_product_attention` and the kernel that torch picks for it."""
    q, k, v = (x.transpose(1, 2) for x in concatenate_streams(latent, condition))  # (B, H, L+C, D)
    n_latent = latent.qkv.shape[1]
    mask = None if condition_length is None else padding_mask(k.shape[2], n_latent + condition_length)
    return split_streams(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2), n_latent)


def joint_attention_cudnn(
    latent: StreamInput, condition: StreamInput, condition_length: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Use cuDNN's kernel, which torch does not pick by itself."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return joint_attention_sdpa(latent, condition, condition_length)


def joint_attention_flash(
    latent: StreamInput, condition: StreamInput, condition_length: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Use the newest flash-attn that is installed, without a mask and without waiting for the device."""
    return joint_attention_varlen(flash_function(), latent, condition, condition_length)


def joint_attention_varlen(
    attend: Varlen, latent: StreamInput, condition: StreamInput, condition_length: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Use a function for sequences of different length: `attend(q, k, v, q_bounds, k_bounds, longest_q, longest_k)`."""
    q, k, v = (x.flatten(0, 1) for x in concatenate_streams(latent, condition))  # (B·(L+C), H, D)
    (B, L), C = latent.qkv.shape[:2], condition.qkv.shape[1]
    bounds = sequence_bounds(B, L, C, condition_length, q.device)
    out = attend(q, k, v, bounds, bounds, L + C, L + C)
    out = out[0] if isinstance(out, tuple) else out
    return split_streams(out.unflatten(0, (B, L + C)), L)


def concatenate_streams(latent: StreamInput, condition: StreamInput) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys with norm and rotation, and values, of both streams: (B, L + C, H, D) each, latents first."""
    q, k, v = (torch.cat(pair, dim=1) for pair in zip(latent.rotated(), condition.rotated(), strict=True))
    return q, k, v


def split_streams(out: Tensor, n_latent: int) -> tuple[Tensor, Tensor]:
    """out (B, L + C, H, D) -> (B, L, H·D) and (B, C, H·D), in separate memory: torch 2.13 loads compiled code
    with outputs that share memory from its cache with wrong shapes."""
    out = out.flatten(2)
    return out[:, :n_latent].contiguous(), out[:, n_latent:].contiguous()


def sequence_bounds(B: int, L: int, C: int, condition_length: Tensor | None, device: torch.device) -> Tensor:
    """Bounds (2·B + 1,) in int32 of the sequences in a flat (B·(L + C),).

    A sample's padding is its own sequence, which attends only to itself. So nothing has to be packed, and the
    host needs to know no length.
    """
    ends = torch.arange(1, B + 1, device=device, dtype=torch.int32) * (L + C)
    used = ends if condition_length is None else ends - C + condition_length.to(torch.int32)
    return F.pad(torch.stack((used, ends), dim=1).flatten(), (1, 0))


def flash_function() -> Varlen:
    """flash-attn's function for sequences of different lengths. Raises ImportError if none is installed."""
    if _flash_function:
        return _flash_function[0]
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    for name in FLASH if hopper else FLASH[1:]:
        try:
            function: Varlen = importlib.import_module(name).flash_attn_varlen_func
            _flash_function.append(function)
            return function
        except (ImportError, AttributeError):
            continue
    raise ImportError("flash-attn is not installed")
