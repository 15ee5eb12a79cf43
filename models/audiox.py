"""AudioX: conditioner, fusion and backbone as one set of weights that loads with `from_pretrained`."""

from dataclasses import dataclass

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from . import strict
from .blocks import Stream
from .conditioner import Conditioner
from .config import ModelConfig
from .fusion import Fusion, Gate
from .mmdit import MMDiT


@dataclass(frozen=True)
class SamplingConfig:
    """How a set of weights wants to be sampled."""

    kind: str = "euler"  # "euler": the flow ODE; "renoise": the few-step student's denoise and renoise
    steps: int = 50
    guidance: float = 3.0  # 1 means none


class AudioX(
    nn.Module,
    PyTorchModelHubMixin,
    coders={
        ModelConfig: (strict.to_dict, lambda data: strict.parse(ModelConfig, data, "config")),
        SamplingConfig: (strict.to_dict, lambda data: strict.parse(SamplingConfig, data, "sampling")),
    },
    library_name="audiox-turbo",
):
    """The trained part of AudioX-Base and AudioX-Turbo: everything but the frozen encoders and the codec."""

    def __init__(self, config: ModelConfig, sampling: SamplingConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.sampling = sampling or SamplingConfig()
        self.conditioner = Conditioner(config)
        self.backbone = MMDiT(config.backbone, config.codec, config.fusion.width, self.conditioner.seconds)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Linear weights by Xavier; what feeds a residual or leaves the model starts at zero, so that every block is
        the identity at first (adaLN-zero) and fusion adds nothing."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.backbone.modulation_out.weight)
        nn.init.zeros_(self.backbone.latent_out.weight)
        for module in self.modules():
            if isinstance(module, Stream):
                nn.init.zeros_(module.modulation.weight)
            elif isinstance(module, Gate):
                nn.init.zeros_(module.linear.weight)
            elif isinstance(module, Fusion) and module.config.enabled and module.config.attend:
                nn.init.zeros_(module.dispatch.out.weight)

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
        """Velocity (B, L, C) of z (B, L, C) at noise levels t (B,); the features are those of `Conditioner`."""
        condition, length = self.encode(video, audio, text, text_length)
        return self.backbone(z, t, condition, length, n_blocks)

    def encode(self, video: Tensor, audio: Tensor, text: Tensor, text_length: Tensor) -> tuple[Tensor, Tensor]:
        """H_c (B, V+L+T, W) and its lengths (B,): computed once for all steps of a sampler."""
        condition = self.conditioner(video, audio, text, text_length)
        return condition, text_length + (condition.shape[1] - text.shape[1])


def count_parameters(model: AudioX) -> dict[str, int]:
    """Trained parameters per part; the parts add up to the whole."""

    def size(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    conditioner = model.conditioner
    parts = {
        "blocks": size(model.backbone.blocks),
        "fusion": size(conditioner.fusion),
        "temporal": size(conditioner.video) + size(conditioner.audio),
    }
    total = size(model)
    return parts | {"rest": total - sum(parts.values()), "total": total}


def load_strict(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load weights by name, none missing and none left over.

    Raises ValueError that names the first few differing keys or both shapes.
    """
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise ValueError(f"the weights do not fit the model: missing {missing[:3]}, not known {extra[:3]}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ValueError(f"{name}: the weights have {tuple(tensor.shape)}, the model {tuple(own[name].shape)}")
    with torch.no_grad():
        model.load_state_dict(state, strict=True)
