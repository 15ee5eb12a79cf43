"""What a batch of sounds is made from.

B batch, L latent frames, C latent channels, S motion steps, D video feature width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.config import ModelConfig


@dataclass(frozen=True)
class Request:
    """Conditions that are None are absent."""

    texts: Sequence[str]  # B
    video: Tensor | None = None  # (B, S, D) features on the motion grid
    audio: Tensor | None = None  # (B, L, C) latents, read where `given` is 1
    given: Tensor | None = None  # (B, L), 1 where the sound is given and kept

    def part(self, cut: slice) -> "Request":
        """Some of the batch."""
        optional = (self.video, self.audio, self.given)
        return Request(self.texts[cut], *(None if value is None else value[cut] for value in optional))


def joined(requests: Sequence[Request], config: ModelConfig) -> Request:
    """Several requests as one; what only some of them have is zero, that is absent, in the others."""
    codec, video = config.codec, config.video
    shapes = {
        "video": (video.steps, video.dim),
        "audio": (codec.frames, codec.latent_channels),
        "given": (codec.frames,),
    }
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        values = [getattr(request, name) for request in requests]
        if any(value is not None for value in values):
            sizes = [len(request.texts) for request in requests]
            rows = [torch.zeros(n, *shape) if v is None else v.float() for n, v in zip(sizes, values, strict=True)]
            tensors[name] = torch.cat(rows)
    return Request([text for request in requests for text in request.texts], **tensors)
