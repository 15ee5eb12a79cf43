"""The conditions of a batch of clips.

B batch, L latent frames, C latent channels, S rows of video features, D video feature width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.config import EncodersConfig


@dataclass(frozen=True)
class ClipRequest:
    """A condition that is None is absent."""

    texts: Sequence[str]  # B
    video: Tensor | None = None  # (B, S, D) features, as the network takes them
    audio: Tensor | None = None  # (B, L, C) latents, read where `given_mask` is 1
    given_mask: Tensor | None = None  # (B, L), 1 where the sound is given and stays as it is

    def rows(self, rows: slice) -> "ClipRequest":
        """Some clips of the batch."""
        optional = (self.video, self.audio, self.given_mask)
        return ClipRequest(self.texts[rows], *(None if value is None else value[rows] for value in optional))


def concatenate_requests(requests: Sequence[ClipRequest], config: EncodersConfig) -> ClipRequest:
    """One request for all clips. A condition that only some of them have is zero, that is absent, in the others."""
    codec = config.codec
    shapes = {
        "video": (config.video_rows, config.video.dim),
        "audio": (codec.frames, codec.latent_channels),
        "given_mask": (codec.frames,),
    }
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        values = [(len(request.texts), getattr(request, name)) for request in requests]
        if any(value is not None for _, value in values):
            tensors[name] = torch.cat([torch.zeros(n, *shape) if v is None else v.float() for n, v in values])
    return ClipRequest([text for request in requests for text in request.texts], **tensors)
