"""The frozen teacher in a distillation: guided velocities, ODE endpoints, the discriminator's trunk.

B batch, L latent frames, C latent channels, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...models.encoders.base import TextEncoder
from ...models.sampler import Velocity, euler
from ..data.batches import Batch, Conditions
from ..engine.zero import Frozen
from ..losses.guidance import Nothing, guided_velocity, through


class Teacher:
    """What is asked of the teacher; gradients pass through to z where they are enabled."""

    def __init__(self, frozen: Frozen, encode_text: TextEncoder, guidance: float, blocks: int) -> None:
        self.frozen, self.guidance, self.blocks = frozen, guidance, blocks
        self.nothing = Nothing(encode_text)

    def velocity(self, conditions: Conditions) -> Velocity:
        """Guided, for samples of these conditions."""
        return guided_velocity(self.frozen.module, self.frozen.dtype, conditions, self.nothing, self.guidance)

    def features(self, z: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """Latent tokens after the first blocks (section V-B): (B, L, W)."""
        return through(self.frozen.module, self.frozen.dtype, z, t, conditions, n_blocks=self.blocks)

    @torch.no_grad()
    def endpoint(self, batch: Batch, noise: Tensor, times: Sequence[float]) -> Tensor:
        """Where the guided ODE leads from noise (B, L, C) over noise levels that fall from 1 to 0."""
        return euler(self.velocity(batch.conditions), noise, times, batch.latents, batch.given.unsqueeze(-1))
