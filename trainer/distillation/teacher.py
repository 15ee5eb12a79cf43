"""The frozen teacher of a distillation: guided velocities, ODE endpoints, features for the discriminator.

B batch, L latent frames, C latent channels, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...models.discriminator import trunk_options
from ...models.encoders.base import TextEncoder
from ...models.sampler import Guidance, Velocity, apply_guidance, euler
from ..data.batches import Batch, Conditions
from ..engine.zero import FrozenModel
from ..losses.flow_matching import noise_estimate
from ..losses.guidance import NullConditions, build_velocity, predict_both, predict_velocity


class Teacher:
    """Gradients pass through it to z where they are enabled."""

    def __init__(
        self,
        frozen: FrozenModel,
        encode_text: TextEncoder,
        guidance: Guidance,
        blocks: int = 1,
        released: bool = False,
        heads: int = 1,
    ) -> None:
        """`blocks` and `heads` are those of the discriminator, for `features`."""
        self.frozen, self.guidance, self.trunk = frozen, guidance, trunk_options(blocks, heads)
        self.null = NullConditions(encode_text, released)

    def velocity(self, conditions: Conditions) -> Velocity:
        """The guided velocity of samples with these conditions, each with a noise level of its own."""
        frozen, guidance = self.frozen, self.guidance
        if guidance.scale == 1:
            return self.unguided(conditions)
        branches = predict_both(frozen.module, frozen.dtype, conditions, self.null)
        return lambda z, t: apply_guidance(branches(z, t), guidance.of(t))

    def unguided(self, conditions: Conditions) -> Velocity:
        return build_velocity(self.frozen.module, self.frozen.dtype, conditions, self.null, [1.0])

    def guided_and_plain(self, z: Tensor, t: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """Velocities (B, L, C) with and without guidance, from one forward."""
        both = predict_both(self.frozen.module, self.frozen.dtype, conditions, self.null)(z, t)
        return apply_guidance(both, self.guidance.of(t)), both.float().chunk(2)[0]

    def _velocity(self, conditions: Conditions, levels: Sequence[float]) -> Velocity:
        """The guided velocity of evaluations at these noise levels in turn."""
        scales = [self.guidance.at(t) for t in levels]
        return build_velocity(self.frozen.module, self.frozen.dtype, conditions, self.null, scales)

    def velocity_at(self, z: Tensor, level: float, conditions: Conditions) -> Tensor:
        """The guided velocity at z (B, L, C), whose noise level is that of all samples."""
        return self._velocity(conditions, [level])(z, torch.full((len(z),), level, device=z.device))

    def features(self, z: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """Latent tokens after the first blocks (section V-B): (B, L, W), for several heads (B, heads, L, W); of the
        released network the velocities after each block, (B, blocks, L, C)."""
        return predict_velocity(self.frozen.module, self.frozen.dtype, z, t, conditions, **self.trunk)

    @torch.no_grad()
    def endpoint(self, batch: Batch, z: Tensor, times: Sequence[float]) -> Tensor:
        """The endpoint of the guided ODE from z (B, L, C) at times[0], over noise levels that fall to 0."""
        noise = noise_estimate(z, batch.latents, torch.full((len(z),), times[0], device=z.device))  # where it is given
        velocity = self._velocity(batch.conditions, times[:-1])
        return euler(velocity, noise, times, batch.latents, batch.given_mask.unsqueeze(-1), z)
