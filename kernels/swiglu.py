"""SwiGLU: silu(a)·b for a and b packed side by side, as they come out of one projection."""

import torch.nn.functional as F
from torch import Tensor


def swiglu(ab: Tensor) -> Tensor:
    """ab (..., 2·hidden) -> (..., hidden)."""
    a, b = ab.chunk(2, dim=-1)
    return F.silu(a) * b
