"""LayerNorm followed by modulation (adaLN): y = LN(x)·(1 + scale) + shift, without learnt affine parameters.

B batch, L tokens, W width. Statistics are taken in float32 and the result is cast once.
"""

import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6


def layer_norm_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, L, W), shift and scale (B, W) in float32 -> (B, L, W) in the dtype of x."""
    normed = F.layer_norm(x.float(), (x.shape[-1],), eps=EPS)
    return (normed * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)).to(x.dtype)
