"""The random numbers of a distillation, each sample's from its own generators (`rng.py`).

B batch, L latent frames, C latent channels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..core.hardware import to_device
from ..core.rng import Purpose, sample_rng
from .batches import Batch


class DistillDraws:
    """Functions of the seed, the update and the places of a batch in the global batch."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device

    def interval(self, update: int, probabilities: Sequence[float]) -> int:
        """Which of the student's steps an update is about: one for all samples and ranks."""
        rng = sample_rng(self.seed, update, 0, Purpose.INTERVAL)
        return int(rng.choice(len(probabilities), p=np.array(probabilities) / sum(probabilities)))

    @staticmethod
    def first(seed: int, update: int, place: int, shape: tuple[int, ...]) -> Tensor:
        """A sample's first noise (L, C), which is `rollout`'s whatever `k` is."""
        rng = sample_rng(seed, update, place, Purpose.ROLLOUT)
        rng.uniform()  # the level that `_draw` takes
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

    def rollout(self, update: int, batch: Batch, k: int) -> Tensor:
        """The student's first noise and what its `k` renoisings take: (k + 1, B, L, C)."""
        noise, _ = self._draw(update, batch, Purpose.ROLLOUT, k + 1, (0.0, 1.0))
        return noise

    def perturbation(self, update: int, batch: Batch, levels: Sequence[float]) -> tuple[Tensor, Tensor]:
        """z_1 (B, L, C) and τ (B,) between two levels (Eq. 6, 11)."""
        noise, tau = self._draw(update, batch, Purpose.PERTURBATION, 1, levels)
        return noise[0], tau

    def critic(self, update: int, batch: Batch, levels: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Noise for two latents of every sample (2, B, L, C), and their common t_d (B,) between two levels."""
        return self._draw(update, batch, Purpose.CRITIC, 2, levels)

    def _draw(
        self, update: int, batch: Batch, purpose: Purpose, count: int, levels: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """(count, B, L, C) and (B,)."""
        shape = tuple(batch.latents.shape[1:])
        rngs = [sample_rng(self.seed, update, place, purpose) for place in batch.places.tolist()]
        uniform = torch.tensor([rng.uniform(levels[0], levels[1]) for rng in rngs], dtype=torch.float32)
        noise = np.stack([rng.standard_normal((count, *shape), dtype=np.float32) for rng in rngs], axis=1)
        return to_device(torch.from_numpy(noise), self.device), to_device(uniform, self.device)
