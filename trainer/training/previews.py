"""Sound for fixed prompts from the weights in training, for TensorBoard."""

import functools

import torch
from torch import Tensor, nn

from ...models.audiox import SamplingConfig
from ...models.encoders.base import AudioCodec
from ...models.encoders.build import build_codec, build_text_encoder
from ...models.sampler import sample
from ..core.config import BaseConfig
from ..data.batches import Conditions
from ..losses.guidance import NullConditions, build_velocity


class Previews:
    """The encoded prompts of `logging.preview_prompts`, and the codec that decodes what is sampled for them."""

    def __init__(self, config: BaseConfig) -> None:
        self.config = config
        self.names = [f"{i} {prompt}" for i, prompt in enumerate(config.logging.preview_prompts)]

    def load(self) -> None:
        """Loads text encoder and codec before training instead of at the first preview. A run without previews needs
        neither. Raises ValueError where their weights are missing."""
        if self.names and self.config.logging.preview_every:
            try:
                _ = self.conditions, self.codec
            except ValueError as error:
                raise ValueError(f"{error}; or set logging.preview_every to 0, which makes no sounds") from None

    @functools.cached_property
    def codec(self) -> AudioCodec:
        return build_codec(self.config.model.codec)

    @functools.cached_property
    def conditions(self) -> tuple[Conditions, NullConditions]:
        """The encoded prompts, and the null conditions for guidance."""
        model, prompts = self.config.model, list(self.config.logging.preview_prompts)
        encode_text = build_text_encoder(model.text)
        video = torch.zeros(len(prompts), model.video.steps, model.video.dim)
        audio = torch.zeros(len(prompts), model.codec.frames, model.codec.latent_channels)
        return Conditions(video, audio, *encode_text(prompts)), NullConditions(encode_text)

    @torch.no_grad()
    def sample(self, model: nn.Module, sampling: SamplingConfig, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Latents (B, L, C) of the prompts, from the same noise every time."""
        shape = len(self.names), self.config.model.codec.frames, self.config.model.codec.latent_channels
        if not self.names:
            return torch.zeros(shape)
        generator = torch.Generator().manual_seed(0)
        conditions, null = self.conditions
        velocity = build_velocity(model, dtype, conditions.to(device, dtype), null, sampling.guidance)
        with torch.compiler.set_stance("force_eager"):
            return sample(velocity, lambda: torch.randn(shape, generator=generator).to(device), sampling).cpu()
