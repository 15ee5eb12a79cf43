"""The random numbers of distillation. Every sample has its own generators (`core/rng.py`).

B batch, L latent frames, C latent channels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..core.hardware import to_device
from ..core.noise_levels import NoiseLevels
from ..core.rng import Purpose, sample_rng
from .batches import Batch


class DistillDraws:
    """Random numbers as functions of the seed, the update, and the indices of a batch in the global batch."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device

    def interval(self, update: int, probabilities: Sequence[float]) -> int:
        """Draw the step of the student that an update trains: one for all samples and ranks."""
        rng = sample_rng(self.seed, update, 0, Purpose.INTERVAL)
        return int(rng.choice(len(probabilities), p=np.array(probabilities) / sum(probabilities)))

    @staticmethod
    def first_noise(seed: int, update: int, index: int, shape: tuple[int, ...]) -> Tensor:
        """The first noise (L, C) of a sample, the same as in `rollout` for every `k`."""
        rng = sample_rng(seed, update, index, Purpose.ROLLOUT)
        rng.random()  # `_draw` takes a level first
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

    def rollout(self, update: int, batch: Batch, k: int) -> Tensor:
        """The student's first noise and that of its `k` renoisings: (k + 1, B, L, C)."""
        noise, _ = self._draw(update, batch, Purpose.ROLLOUT, k + 1, NoiseLevels((0.0, 1.0)))
        return noise

    def perturbation(self, update: int, batch: Batch, levels: NoiseLevels) -> tuple[Tensor, Tensor]:
        """z_1 (B, L, C) and τ (B,) (Eq. 6, 11)."""
        noise, tau = self._draw(update, batch, Purpose.PERTURBATION, 1, levels)
        return noise[0], tau

    def guidance(self, update: int, batch: Batch, levels: NoiseLevels) -> tuple[Tensor, Tensor]:
        """The same as `perturbation` for the guidance's part of the gradient."""
        noise, tau = self._draw(update, batch, Purpose.GUIDANCE, 1, levels)
        return noise[0], tau

    def critic(self, update: int, batch: Batch, levels: NoiseLevels) -> tuple[Tensor, Tensor]:
        """Noise for two latents of every sample and for a change of the first (3, B, L, C), and their t_d (B,)."""
        return self._draw(update, batch, Purpose.CRITIC, 3, levels)

    def _draw(
        self, update: int, batch: Batch, purpose: Purpose, count: int, levels: NoiseLevels
    ) -> tuple[Tensor, Tensor]:
        """(count, B, L, C) and (B,)."""
        shape = tuple(batch.latents.shape[1:])
        rngs = [sample_rng(self.seed, update, index, purpose) for index in batch.indices.tolist()]
        t = torch.tensor([levels.from_uniform(rng.random()) for rng in rngs], dtype=torch.float32)
        noise = np.stack([rng.standard_normal((count, *shape), dtype=np.float32) for rng in rngs], axis=1)
        return to_device(torch.from_numpy(noise), self.device), to_device(t, self.device)
