"""The conditions of a batch of clips.

B batch, L latent frames, C latent channels, S rows of video features, D video feature width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

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
    preceding: Tensor | None = None  # (B, L, C) latents of what precedes the clip, which end where it begins
    initial: Tensor | None = None  # (B, L, C) latents of a sound that is varied
    level: float = 1.0  # of the noise with which all begin; below 1 for `initial`
    negatives: Sequence[str] = ()  # B texts that guidance leads away from, "" for none; or none of any
    loop: int = 0  # samples of a sound that loops; 0 for one that does not

    def rows(self, rows: slice) -> "ClipRequest":
        """Some clips of the batch."""
        names = "video", "audio", "given_mask", "preceding", "initial"
        tensors: dict[str, Any] = {n: None if (value := getattr(self, n)) is None else value[rows] for n in names}
        return replace(self, texts=self.texts[rows], negatives=self.negatives[rows], **tensors)


def concatenate_requests(requests: Sequence[ClipRequest], config: EncodersConfig) -> ClipRequest:
    """One request for all clips, which have one level. A condition that only some of them have is zero, that is absent,
    in the others."""
    codec = config.codec
    shapes = {
        "video": (config.video_rows, config.video_dim),
        "audio": (codec.frames, codec.latent_channels),
        "given_mask": (codec.frames,),
        "preceding": (codec.frames, codec.latent_channels),
        "initial": (codec.frames, codec.latent_channels),
    }
    (level,) = {request.level for request in requests}
    tensors: dict[str, Any] = {}
    for name, shape in shapes.items():
        values = [(len(request.texts), getattr(request, name)) for request in requests]
        if any(value is not None for _, value in values):
            tensors[name] = torch.cat([torch.zeros(n, *shape) if v is None else v.float() for n, v in values])
    texts = [text for request in requests for text in request.texts]
    negatives = [text for request in requests for text in request.negatives or [""] * len(request.texts)]
    return ClipRequest(texts, **tensors, level=level, negatives=negatives)
