"""CLIP's image encoder by transformers, frozen: frames to their pooled states, or to those of all their tokens.

B clips, N frames, P tokens of a frame (the class token, then its patches), D feature width.
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
    """The state of the class token after the last normalisation, before CLIP's projection (768 wide for ViT-B/32); with
    `all_tokens` those of all tokens before the last normalisation."""

    def __init__(self, model: Any, runtime: Runtime, all_tokens: bool = False) -> None:
        self.runtime, self.model, self.all_tokens = runtime, runtime.frozen(model), all_tokens
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
        model = pretrained.load(transformers().CLIPVisionModel)
        return cls(model, runtime, all_tokens=config.kind == "clip_tokens_sync")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """images (B, N, 3, size, size) uint8 -> (B, N, D), or of all tokens (B, N·P, D), float32, where the images
        lie."""
        parts = [self._states(part.to(self.runtime.device)) for part in images.flatten(0, 1).split(FRAMES_AT_ONCE)]
        states = torch.cat(parts).unflatten(0, images.shape[:2]).to(images.device)
        return states.flatten(1, 2) if self.all_tokens else states

    def _states(self, frames: Tensor) -> Tensor:
        with self.runtime.autocast():
            outputs = self.model(pixel_values=(frames / 255 - self.mean) / self.std)
        states: Tensor = outputs.last_hidden_state if self.all_tokens else outputs.pooler_output
        return states.float()
