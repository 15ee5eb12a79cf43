"""The released discriminator: convolutional heads on the velocity of a trunk that is cut after some blocks."""

import torch
from torch import Tensor, nn


class ReleasedDiscriminatorHead(nn.Module):
    """B batch, L latents, C channels."""

    def __init__(self, channels: int = 64, width: int = 128) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(channels, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv1d(width, 2 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv1d(2 * width, 4 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv1d(4 * width, 1, 3, padding=1),
        )

    def forward(self, velocity: Tensor) -> Tensor:
        """(B, L, C) -> scores (B, L/4)."""
        return self.net(velocity.transpose(1, 2)).squeeze(1)


class ReleasedDiscriminator(nn.Module):
    """A head for each cut of the trunk; their scores are averaged."""

    def __init__(self, cuts: int, channels: int = 64, width: int = 128) -> None:
        super().__init__()
        self.heads = nn.ModuleList(ReleasedDiscriminatorHead(channels, width) for _ in range(cuts))

    def forward(self, velocities: Tensor) -> Tensor:
        """(B, cuts, L, C) -> scores (B, L/4)."""
        scores = [head(v) for head, v in zip(self.heads, velocities.unbind(1), strict=True)]
        return torch.stack(scores).mean(0)
