"""The trained part of the diffusion-based discriminator (section V-B).

Its trunk is the frozen teacher up to a block: `AudioX.forward` with `n_blocks`. B batch, L latent frames, W width.
"""

import torch.nn.functional as F
from torch import Tensor, nn


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
