"""Velocities of a whole model, conditioner included, with and without classifier-free guidance.

Everything calls `forward`, which ZeRO-3 needs to gather weights. B batch, L latent frames, C latent channels.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.encoders.base import TextEncoder
from ...models.sampler import Velocity, apply_guidance, by_scale
from ..core.hardware import to_device
from ..data.batches import Conditions

Model = Callable[..., Tensor]


def predict_velocity(
    model: Model, dtype: torch.dtype, z: Tensor, t: Tensor, conditions: Conditions, **options: int | Sequence[int]
) -> Tensor:
    """The model's output at z (B, L, C) and noise levels t (B,), computed in `dtype`."""
    return model(z.to(dtype), t, *conditions.to(z.device, dtype).tensors(), **options)


class NullConditions:
    """No video, no audio and an empty text: the input of the unconditional branch of guidance. For the released network
    a text of length 0, which stands for its null condition."""

    def __init__(self, encode_text: TextEncoder, released: bool = False) -> None:
        self.text, self.length = encode_text([""])
        if released:
            self.text, self.length = torch.zeros_like(self.text), torch.zeros_like(self.length)

    def appended_to(self, conditions: Conditions) -> Conditions:
        """2·B samples: the conditions of B, then B without any."""
        n, tokens = conditions.text.shape[:2]
        self.text, self.length = (to_device(x, conditions.text.device) for x in (self.text, self.length))  # once
        text = F.pad(self.text, (0, 0, 0, max(0, tokens - self.text.shape[1])))[:, :tokens].to(conditions.text.dtype)
        return Conditions(
            torch.cat((conditions.video, torch.zeros_like(conditions.video))),
            torch.cat((conditions.audio, torch.zeros_like(conditions.audio))),
            torch.cat((conditions.text, text.expand(n, -1, -1))),
            torch.cat((conditions.text_length, self.length.expand(n))),
        )


def build_velocity(
    model: Model, dtype: torch.dtype, conditions: Conditions, null: NullConditions, scales: Sequence[float]
) -> Velocity:
    """The velocity function of a model under fixed conditions: v_uncond + guidance·(v_cond - v_uncond) (section VI-A),
    both branches in one forward. `scales` are the guidance of each evaluation in turn. Where it is 1 only the
    conditional branch is evaluated."""

    def plain() -> Velocity:
        return lambda z, t: predict_velocity(model, dtype, z, t, conditions).float()

    def guided(guidance: float) -> Velocity:
        branches = predict_both(model, dtype, conditions, null)
        return lambda z, t: apply_guidance(branches(z, t), guidance)

    return by_scale(scales, plain, guided)


def predict_both(model: Model, dtype: torch.dtype, conditions: Conditions, null: NullConditions) -> Velocity:
    """(z, t) -> velocities of the conditional and the unconditional branch (2·B, L, C), in one forward."""
    both = null.appended_to(conditions)
    return lambda z, t: predict_velocity(model, dtype, z.repeat(2, 1, 1), t.repeat(2), both)
