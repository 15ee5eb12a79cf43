"""CLIP's image encoder by transformers, frozen: frames to their pooled states.

B clips, N frames, D feature width.
"""

from typing import Any, Self

import torch
from torch import Tensor

from ..config import VideoConfig
from .libraries import transformers
from .pretrained import PretrainedWeights
from .runtime import Runtime

FRAMES_AT_ONCE = 256  # that are encoded together: 13,000 tokens of ViT-B/32, 0.5 GB of activations in float32
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures that OpenAI trained on, by channel
STD = (0.26862954, 0.26130258, 0.27577711)
REMEDY = (
    "give a folder with config.json and model.safetensors, made from the files of openai/clip-vit-base-patch32 by "
    "`python launch/convert.py pytorch_model.bin --encoder clip --out weights/clip` (docs/encoders.md)"
)


class ClipImageEncoder:
    """The state of the class token after the last normalisation, before CLIP's projection (768 wide for ViT-B/32)."""

    def __init__(self, model: Any, runtime: Runtime) -> None:
        self.runtime, self.model = runtime, runtime.frozen(model)
        self.mean, self.std = (torch.tensor(v, device=runtime.device).view(3, 1, 1) for v in (MEAN, STD))
        if runtime.compile:
            self.model.compile()

    @classmethod
    def load(cls, config: VideoConfig, runtime: Runtime) -> Self:
        """Raises ValueError where there are no weights, or others than the configuration says."""
        pretrained = PretrainedWeights("model.video.image_weights", config.image_weights, REMEDY)
        with pretrained.reading():
            found = transformers().AutoConfig.from_pretrained(config.image_weights, trust_remote_code=False)
            if found.model_type not in ("clip", "clip_vision_model"):
                raise ValueError(f"weights of {found.model_type!r}, not of 'clip'")
        vision = getattr(found, "vision_config", found)
        sizes = {"dim": vision.hidden_size, "size": vision.image_size}
        pretrained.check_sizes({"dim": config.dim, "size": config.size}, sizes)
        return cls(pretrained.load(transformers().CLIPVisionModel), runtime)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """images (B, N, 3, size, size) uint8 -> (B, N, D) float32, where the images lie."""
        parts = [self._pooled(part.to(self.runtime.device)) for part in images.flatten(0, 1).split(FRAMES_AT_ONCE)]
        return torch.cat(parts).unflatten(0, images.shape[:2]).to(images.device)

    def _pooled(self, frames: Tensor) -> Tensor:
        with self.runtime.autocast():
            pooled: Tensor = self.model(pixel_values=(frames / 255 - self.mean) / self.std).pooler_output
        return pooled.float()
