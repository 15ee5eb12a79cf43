"""The trained part of the diffusion-based discriminator (section V-B).

Its trunk is the frozen teacher up to a block: `AudioX.forward` with `n_blocks`. B batch, L latent frames, W width.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def feature_depths(blocks: int, heads: int) -> tuple[int, ...]:
    """The blocks after which so many heads read features: evenly spaced, the last after `blocks`."""
    return tuple(round(blocks * (i + 1) / heads) for i in range(heads))


def trunk_options(blocks: int, heads: int) -> Mapping[str, int | tuple[int, ...]]:
    """Options of a network's `forward` that give the features of so many heads."""
    return {"n_blocks": blocks} | ({"depths": feature_depths(blocks, heads)} if heads > 1 else {})


class DiscriminatorHead(nn.Module):
    """A score of every latent token: high for data, low for what a student made."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """features (B, L, W) of the trunk -> scores (B, L)."""
        return self.score(F.silu(self.hidden(self.norm(features)))).squeeze(-1)


class DepthHeads(nn.Module):
    """A head for features after each of several blocks."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(DiscriminatorHead(width) for _ in range(heads))

    def forward(self, features: Tensor) -> Tensor:
        """features (B, heads, L, W) -> scores (B, heads·L)."""
        return torch.cat([head(x) for head, x in zip(self.heads, features.unbind(1), strict=True)], 1)
