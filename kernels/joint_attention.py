"""Joint attention of two token streams: each token attends to all latent and all condition tokens (MMDiT, VI-A).

B batch, L latent tokens, C condition tokens, H heads, D head width. QKV come packed, as their projections leave them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import attention
from .qk_norm_rope import qk_norm_rope


@dataclass(frozen=True)
class StreamInput:
    """One stream's share of a joint attention."""

    qkv: Tensor  # (B, N, 3, H, D)
    q_norm: Tensor  # (D,)
    k_norm: Tensor  # (D,)
    cos: Tensor  # (N, D/2) float32
    sin: Tensor  # (N, D/2) float32

    def rotated(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys with norm and rotation applied, and values, each (B, N, H, D)."""
        q, k, v = self.qkv.unbind(2)
        return qk_norm_rope(q, self.q_norm, self.cos, self.sin), qk_norm_rope(k, self.k_norm, self.cos, self.sin), v


def joint_attention(
    latent: StreamInput, condition: StreamInput, condition_length: Tensor | None
) -> tuple[Tensor, Tensor]:
    """-> (latent output (B, L, H·D), condition output (B, C, H·D)).

    `condition_length` (B,) counts each sample's condition tokens; those past it are attended by nobody, and what they
    themselves receive is not defined further. None means that no condition token is padding.
    """
    streams = [s.rotated() for s in (latent, condition)]
    q, k, v = (torch.cat([s[i] for s in streams], dim=1).transpose(1, 2) for i in range(3))  # (B, H, L+C, D)
    n_latent = latent.qkv.shape[1]
    length = None if condition_length is None else n_latent + condition_length
    out = attention(q, k, v, length)
    out = out.transpose(1, 2).flatten(2)  # (B, L+C, H·D)
    return out[:, :n_latent], out[:, n_latent:]
