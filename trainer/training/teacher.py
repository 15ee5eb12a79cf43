"""The frozen teacher of a distillation: guided velocities, ODE endpoints, features for the discriminator.

B batch, L latent frames, C latent channels, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...models.encoders.base import TextEncoder
from ...models.sampler import Velocity, euler
from ..data.batches import Batch, Conditions
from ..engine.zero import FrozenModel
from ..losses.guidance import NullConditions, build_velocity, predict_velocity


class Teacher:
    """Gradients pass through it to z where they are enabled."""

    def __init__(self, frozen: FrozenModel, encode_text: TextEncoder, guidance: float, blocks: int) -> None:
        self.frozen, self.guidance, self.blocks = frozen, guidance, blocks
        self.null = NullConditions(encode_text)

    def velocity(self, conditions: Conditions) -> Velocity:
        """The guided velocity of samples with these conditions."""
        return build_velocity(self.frozen.module, self.frozen.dtype, conditions, self.null, self.guidance)

    def features(self, z: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """Latent tokens after the first `blocks` blocks (section V-B): (B, L, W)."""
        return predict_velocity(self.frozen.module, self.frozen.dtype, z, t, conditions, n_blocks=self.blocks)

    @torch.no_grad()
    def endpoint(self, batch: Batch, noise: Tensor, times: Sequence[float]) -> Tensor:
        """The endpoint of the guided ODE from noise (B, L, C), over noise levels that fall from 1 to 0."""
        return euler(self.velocity(batch.conditions), noise, times, batch.latents, batch.given_mask.unsqueeze(-1))
