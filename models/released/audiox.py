"""The released network behind the interface of our own: the same inputs, weights folders and samplers.

B batch, F frames, P tokens of a frame, S sync steps, L latents, T text tokens, C condition width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.ops import Ops
from .. import strict
from ..audiox import PretrainedModel, SamplingConfig
from ..config import ReleasedModelConfig
from .backbone import ReleasedTimestepFeatures
from .network import ReleasedNetwork

SILENCE = "silence"  # the one tensor that the released files lack


@dataclass(frozen=True)
class ReleasedWeightsConfig:
    """The `config.json` of a weights folder."""

    model: ReleasedModelConfig
    sampling: SamplingConfig | None = None
    license: str = ""


class ReleasedAudioX(ReleasedNetwork, PretrainedModel, library_name="audiox-trainer"):
    """As `AudioX`, with these differences of what it takes.

    Video features (B, F·P + S, C) are CLIP's tokens, frame by frame, then the sync features. Sound is latents of the
    prompt, (B, 215, 64), one clip long, and the velocity is that of (B, 236, 64). As in our own network, what is zero
    throughout is absent: a video, or a latent frame of the prompt. A text of length 0, which no encoder gives, stands
    for the null condition of guidance: zeros in place of the fusion's output.
    """

    config_type = ReleasedWeightsConfig

    def __init__(
        self,
        model: ReleasedModelConfig | dict[str, Any],
        sampling: SamplingConfig | dict[str, Any] | None = None,
        license: str = "",
    ) -> None:
        config = strict.parse(ReleasedModelConfig, model, "model") if isinstance(model, dict) else model
        sampling = strict.parse(SamplingConfig, sampling, "sampling") if isinstance(sampling, dict) else sampling
        super().__init__(config.released)
        self.config: ReleasedModelConfig = config
        self.sampling: SamplingConfig = sampling or SamplingConfig()
        self.license = license
        # Latents of a silent prompt. The release samples them anew for every clip; here they are drawn once, when its
        # files are converted.
        self.silence: Tensor  # under the name SILENCE
        self.register_buffer(SILENCE, torch.zeros(config.released.prompt_latents, config.released.channels))

    def use(self, ops: Ops) -> "ReleasedAudioX":
        """Its blocks have other operations than ours, and always use torch's own."""
        return self

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        video: Tensor,
        audio: Tensor,
        text: Tensor,
        text_length: Tensor,
        n_blocks: int | None = None,
    ) -> Tensor:
        """Velocity (B, L, 64) of z (B, L, 64) at noise levels t (B,). With `n_blocks` those of the networks that end
        after 1, 2, …, `n_blocks` blocks, (B, n_blocks, L, 64): the features of the discriminator."""
        condition, _ = self.encode(video, audio, text, text_length)
        return self.backbone(z, t, condition, n_blocks)

    def encode(self, video: Tensor, audio: Tensor, text: Tensor, text_length: Tensor) -> tuple[Tensor, Tensor]:
        """The condition (B, 3·T, C), and the texts' lengths (B,)."""
        sizes = self.sizes
        clip, sync = video.split((sizes.frames * sizes.frame_tokens, sizes.sync_steps), dim=1)
        present = video.flatten(1).any(1)
        audio = torch.where(audio.any(-1, keepdim=True), audio, self.silence.to(audio.dtype))
        text = F.pad(text, (0, 0, 0, sizes.tokens - text.shape[1]))
        fused = self.fuse(clip.unflatten(1, (sizes.frames, -1)), sync, present, text, text_length, audio)
        return fused * (text_length > 0)[:, None, None], text_length

    def conditioned(self, condition: Tensor, length: Tensor) -> Callable[[Tensor, Any], Tensor]:
        """The velocity (z, noise levels or their `timestep_features`) -> v under what `encode` gave. The modulations,
        a fifth of an evaluation, are computed here, once for all steps."""
        modulation = self.backbone.modulation(condition)
        return lambda z, t: self.backbone(z, t, modulation)

    def timestep_features(self, t: Tensor) -> ReleasedTimestepFeatures:
        """What depends on the noise levels t (B,) alone: the time token, and what the cross-attentions add."""
        return self.backbone.level(t)
