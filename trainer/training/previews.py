"""Sound for fixed prompts from the weights in training, for TensorBoard and for scorers.

B clips, L latent frames, C latent channels.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ...models.audiox import SamplingConfig
from ...models.config import ReleasedModelConfig
from ...models.encoders.base import AudioCodec
from ...models.encoders.build import build_codec, build_text_encoder
from ...models.sampler import guidance_scales, sample
from ..core.config import BaseConfig
from ..data.batches import Conditions
from ..losses.guidance import NullConditions, build_velocity


class PromptSampler:
    """Encoded texts, clips that are sampled for them from one noise, and the codec that decodes these."""

    def __init__(self, config: BaseConfig, texts: Sequence[str], seeds: Sequence[int] | None = None) -> None:
        """`seeds` of each text's noise; without them all are drawn together."""
        self.config, self.texts, self.seeds = config, list(texts), seeds

    @functools.cached_property
    def codec(self) -> AudioCodec:
        return build_codec(self.config.model.codec)

    @functools.cached_property
    def conditions(self) -> tuple[Conditions, NullConditions]:
        """The encoded texts, and the null conditions for guidance."""
        model = self.config.model
        encode_text = build_text_encoder(model.text)
        video = torch.zeros(len(self.texts), model.video_rows, model.video_dim)
        audio = torch.zeros(len(self.texts), model.codec.frames, model.codec.latent_channels)
        return Conditions(video, audio, *encode_text(self.texts)), NullConditions(
            encode_text, isinstance(model, ReleasedModelConfig)
        )

    @torch.no_grad()
    def sample(self, model: nn.Module, sampling: SamplingConfig, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Latents (B, L, C) of the texts: in one batch, or with `seeds` in batches of a micro-batch."""
        frame = self.config.model.latent_frames, self.config.model.codec.latent_channels
        if not self.texts:
            return torch.zeros(0, *frame)
        size = len(self.texts) if self.seeds is None else self.config.training.micro_batch
        conditions, null = self.conditions
        found = []
        for start in range(0, len(self.texts), size):
            rows = slice(start, start + size)
            part = Conditions(*(x[rows] for x in conditions.tensors())).to(device, dtype)
            velocity = build_velocity(model, dtype, part, null, guidance_scales(sampling))
            with torch.compiler.set_stance("force_eager"):
                found.append(sample(velocity, self._draw(rows, frame, device), sampling).cpu())
        return torch.cat(found)

    def _draw(self, rows: slice, frame: tuple[int, int], device: torch.device) -> Callable[[], Tensor]:
        """Draws noise (B, L, C) again and again."""
        if self.seeds is None:
            generator = torch.Generator().manual_seed(0)
            return lambda: torch.randn(len(self.texts), *frame, generator=generator).to(device)
        each = [torch.Generator().manual_seed(seed) for seed in self.seeds[rows]]
        return lambda: torch.stack([torch.randn(*frame, generator=one) for one in each]).to(device)


class Previews(PromptSampler):
    """The prompts of `logging.preview_prompts`."""

    def __init__(self, config: BaseConfig) -> None:
        super().__init__(config, config.logging.preview_prompts)
        self.names = [f"{i} {prompt}" for i, prompt in enumerate(config.logging.preview_prompts)]

    def load(self) -> None:
        """Loads text encoder and codec before training instead of at the first preview. A run without previews needs
        neither. Raises ValueError where their weights are missing."""
        if self.names and self.config.logging.preview_every:
            try:
                _ = self.conditions, self.codec
            except ValueError as error:
                raise ValueError(f"{error}; or set logging.preview_every to 0, which makes no sounds") from None
