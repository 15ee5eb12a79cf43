"""Exponential moving average of the fp32 shards that a rank owns. One multi-tensor update; nothing is gathered."""

import torch
from torch import Tensor

from ..core.config import EmaConfig


class Ema:
    """The average of `shards` (flat fp32 tensors). `values` have the same layout."""

    def __init__(self, config: EmaConfig, shards: list[Tensor]) -> None:
        self.config = config
        self.values = [s.detach().clone().float() for s in shards]

    @torch.no_grad()
    def update(self, shards: list[Tensor], updates: int) -> None:
        """After update number `updates` (from 1) of the model: e ← e + (1 - d)·(w - e)."""
        decay = min(self.config.decay, updates / (updates + 9))
        torch._foreach_lerp_(self.values, [s.detach() for s in shards], 1 - decay)
