"""RMSNorm over the head width followed by rotary positions, for queries and keys.

B batch, L tokens, H heads, D head width. The halves (x1, x2) of a head are rotated as pairs (x1[i], x2[i]).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6


def qk_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, L, H, D), weight (D,), cos and sin (L, D/2) in float32 -> (B, L, H, D) in the dtype of x.

    Norm and rotation are computed in float32. A token without position has cos 1 and sin 0.
    """
    return norm_rotate(x, weight, cos.unsqueeze(1), sin.unsqueeze(1))  # (L, 1, D/2), the same for every head


def norm_rotate(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same for x (…, D), and weight (…, D), cos and sin (…, D/2) that broadcast to it. The result is contiguous."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide, memory_format=torch.contiguous_format)
    y = F.rms_norm(y, y.shape[-1:], eps=EPS) * weight.to(wide)
    y1, y2 = y.chunk(2, dim=-1)
    return torch.cat(((y1 * cos).addcmul_(y2, sin, value=-1), (y1 * sin).addcmul_(y2, cos)), dim=-1).to(x.dtype)
