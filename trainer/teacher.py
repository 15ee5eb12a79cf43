"""The frozen teacher in a distillation: guided velocities, ODE endpoints, the discriminator's trunk.

B batch, L latent frames, C latent channels, W width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.config import ModelConfig
from ..models.encoders.build import build_text_encoder
from ..models.sampler import euler
from .data.tasks import Batch, Conditions
from .zero import Frozen

Model = Callable[..., Tensor]


class Teacher:
    """What is asked of the teacher; gradients pass through to z where they are enabled."""

    def __init__(self, frozen: Frozen, model: ModelConfig, guidance: float, blocks: int) -> None:
        self.frozen, self.guidance, self.blocks = frozen, guidance, blocks
        self.empty, self.empty_length = build_text_encoder(model.text)([""])

    def guided(self, z: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """v_uncond + guidance·(v_cond - v_uncond) (section VI-A), both branches in one forward: (B, L, C)."""
        conditions = batch.conditions
        if self.guidance == 1:
            return through(self.frozen.module, self.frozen.dtype, z, t, conditions)
        both = _joined(conditions, self._nothing(conditions))
        v = through(self.frozen.module, self.frozen.dtype, z.repeat(2, 1, 1), t.repeat(2), both).float()
        v_cond, v_uncond = v.chunk(2)
        return v_uncond + self.guidance * (v_cond - v_uncond)

    def features(self, z: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """Latent tokens after the first blocks (section V-B): (B, L, W)."""
        return through(self.frozen.module, self.frozen.dtype, z, t, batch.conditions, n_blocks=self.blocks)

    @torch.no_grad()
    def endpoint(self, batch: Batch, noise: Tensor, times: Sequence[float]) -> Tensor:
        """Where the guided ODE leads from noise (B, L, C) over noise levels that fall from 1 to 0."""
        known, mask = batch.latents.to(noise.device), batch.given.unsqueeze(-1).to(noise.device)
        return euler(lambda z, t: self.guided(z, t, batch), noise, times, known, mask)

    def _nothing(self, conditions: Conditions) -> Conditions:
        n, tokens = conditions.text.shape[:2]
        empty = F.pad(self.empty, (0, 0, 0, max(0, tokens - self.empty.shape[1])))[:, :tokens]
        return Conditions(
            torch.zeros_like(conditions.video),
            torch.zeros_like(conditions.audio),
            empty.expand(n, -1, -1),
            self.empty_length.expand(n),
        )


def through(model: Model, dtype: torch.dtype, z: Tensor, t: Tensor, conditions: Conditions, **options: int) -> Tensor:
    """A model's answer at z (B, L, C) and noise levels t (B,), computed in `dtype`."""
    return model(z.to(dtype), t, *conditions.to(z.device, dtype).tensors(), **options)


def _joined(a: Conditions, b: Conditions) -> Conditions:
    return Conditions(*(torch.cat(pair) for pair in zip(a.tensors(), b.tensors(), strict=True)))
