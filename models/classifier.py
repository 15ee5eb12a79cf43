"""A small classifier of whole clips, for recordings and generated sounds.

B batch, L latent frames, C latent channels, K categories.
"""

import torch
from torch import Tensor, nn


class ClipClassifier(nn.Module):
    """Latents (B, L, C) -> logits (B, K): convolutions over time, then the mean and the maximum over the clip."""

    def __init__(self, channels: int, categories: int, width: int = 96) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(channels, width, 3, padding=1),
            nn.BatchNorm1d(width),
            nn.GELU(),
            nn.Conv1d(width, width, 3, padding=1),
            nn.BatchNorm1d(width),
            nn.GELU(),
        )
        self.dropout = nn.Dropout(0.3)
        self.out = nn.Linear(2 * width, categories)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.layers(latents.transpose(1, 2))  # (B, W, L)
        return self.out(self.dropout(torch.cat((x.mean(2), x.amax(2)), dim=1)))
