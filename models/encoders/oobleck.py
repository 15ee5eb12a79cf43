"""Stable Audio Open's autoencoder by diffusers, frozen: sound to latents and back.

B batch, L latent frames, C latent channels.
"""

from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import CodecConfig
from .libraries import diffusers
from .pretrained import PretrainedWeights
from .runtime import Runtime

FOLDER = "vae"  # of the autoencoder among the parts of a Stable Audio pipeline
REMEDY = (
    "give a folder with vae/config.json and vae/diffusion_pytorch_model.safetensors, made on a machine with a network, "
    "once its licence is accepted on the hub, by `hf download stabilityai/stable-audio-open-1.0 --include 'vae/*' "
    "--local-dir weights/stable-audio` (docs/encoders.md)"
)


class OobleckCodec:
    """Encoding computes in the runtime's dtype, as features are stored in float16 anyway. Decoding stays float32: the
    eight bits of a bfloat16 would be heard as noise."""

    def __init__(self, model: Any, runtime: Runtime) -> None:
        self.runtime, self.model = runtime, runtime.frozen(model)
        for module in self.model.modules():
            if hasattr(module, "weight_g"):
                nn.utils.remove_weight_norm(module)  # else it is computed again at every call
        # A clip of 10 s takes 225 MB at the first layers alone, in float32.
        self.clips = 4 if runtime.device.type == "cuda" else 1
        if runtime.compile:
            self.model.encoder.compile()

    @classmethod
    def load(cls, config: CodecConfig, runtime: Runtime) -> Self:
        """Raises ValueError where there are no weights, or others than the configuration says."""
        pretrained = PretrainedWeights("model.codec.weights", config.weights, REMEDY)
        autoencoder = diffusers().AutoencoderOobleck
        flat = pretrained.local and not Path(config.weights, FOLDER).is_dir()
        folder = {} if flat else {"subfolder": FOLDER}
        with pretrained.reading():
            found = autoencoder.load_config(config.weights, **folder)
            if found["_class_name"] != autoencoder.__name__:
                raise ValueError(f"weights of {found['_class_name']!r}, not of {autoencoder.__name__!r}")
        hop = 1
        for ratio in found["downsampling_ratios"]:
            hop *= ratio
        sizes = {
            "sample_rate": found["sampling_rate"],
            "audio_channels": found["audio_channels"],
            "hop": hop,
            "latent_channels": found["decoder_input_channels"],
        }
        pretrained.check_sizes({name: getattr(config, name) for name in sizes}, sizes)
        return cls(pretrained.load(autoencoder, low_cpu_mem_usage=False, **folder), runtime)

    @torch.no_grad()
    def encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """wave (B, audio_channels, L·hop) -> the posterior's mean and standard deviation, (B, L, C) float32 each, where
        the wave lies: the deviation is softplus(scale) + 1e-4, as in diffusers."""
        parts = []
        for part in wave.split(self.clips):
            with self.runtime.autocast():
                parameters = self.model.encode(part.to(self.runtime.device).float()).latent_dist.parameters
            parts.append(parameters.float().transpose(1, 2))
        mean, scale = torch.cat(parts).to(wave.device).chunk(2, dim=2)
        return mean.contiguous(), F.softplus(scale) + 1e-4

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, L, C) -> wave (B, audio_channels, L·hop) in [-1, 1], float32, where the latents lie."""
        parts = [
            self.model.decode(part.to(self.runtime.device).float().transpose(1, 2)).sample
            for part in latents.split(self.clips)
        ]
        return torch.cat(parts).clamp(-1, 1).to(latents.device)
