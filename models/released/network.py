"""The whole released network but for its frozen encoders and autoencoder: conditioners, fusion and backbone."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .backbone import ReleasedBackbone
from .conditioners import AudioConditioner, ReleasedFusion, VideoConditioner
from .config import ReleasedConfig

BACKBONE = "model." * 2  # before the names of its weights


def unused_shapes(config: ReleasedConfig) -> dict[str, tuple[int, ...]]:
    """What the authors' checkpoints hold besides, by name, and nothing is computed with."""
    width, condition = config.width, config.condition_width
    shapes = {
        "to_cond_embed.0.weight": (condition, condition),
        "to_cond_embed.2.weight": (condition, condition),
        "to_global_embed.0.weight": (width, condition),
        "to_global_embed.2.weight": (width, width),
        **{f"transformer.layers.{i}.cross_attn.to_q.weight": (width, width) for i in range(config.depth)},
    }
    return {f"{BACKBONE}{name}": shape for name, shape in shapes.items()}


def released_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes in the authors' checkpoints. There a single number is a tensor without dimensions, which DeepSpeed
    does not take."""
    return {name: () if x.shape == (1,) else tuple(x.shape) for name, x in network.state_dict().items()}


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the authors' checkpoints with the shapes that they have here."""
    return {name: x.reshape(1) if x.ndim == 0 else x for name, x in state.items()}


class ReleasedNetwork(nn.Module):
    """The whole network of the authors' checkpoints, with the names of their weights.

    B batch, F frames, P tokens of a frame, S sync steps, T = 128 tokens of a modality, L latents, C condition width.
    """

    def __init__(self, config: ReleasedConfig) -> None:
        super().__init__()
        self.sizes = config
        self.model = nn.ModuleDict({"model": ReleasedBackbone(config)})
        self.maf_block = ReleasedFusion(config)
        self.conditioner = nn.ModuleDict(
            {
                "conditioners": nn.ModuleDict(
                    {
                        "video_prompt": VideoConditioner(config),
                        "audio_prompt": AudioConditioner(config),
                    }
                )
            }
        )

    @property
    def backbone(self) -> ReleasedBackbone:
        return self.model["model"]  # type: ignore[return-value]

    @property
    def video_conditioner(self) -> VideoConditioner:
        return self.conditioner["conditioners"]["video_prompt"]  # type: ignore[index]

    def fuse(
        self, clip: Tensor, sync: Tensor, video_present: Tensor, text: Tensor, text_length: Tensor, audio: Tensor
    ) -> Tensor:
        """The condition (B, 3·T, C): text, video, audio.

        `clip` (B, F, P, C) holds CLIP's hidden states before its last norm, `sync` (B, S, C) the sync features. `text`
        (B, T, C) holds T5's last hidden states: the first `text_length` (B,) count, the rest become zeros. `audio`
        (B, 215, 64) holds the prompt's latents, those of silence where there is none.
        """
        audio_conditioner = self.conditioner["conditioners"]["audio_prompt"]  # type: ignore[index]
        counts = torch.arange(text.shape[1], device=text.device) < text_length[:, None]
        video = self.video_conditioner(clip, sync, video_present)
        return self.maf_block(text * counts[..., None], video, audio_conditioner(audio))

    def null_condition(self, batch: int) -> Tensor:
        """(B, 3·T, C): zeros in place of the fusion's output, for guidance and for conditions that are dropped."""
        config, weight = self.sizes, self.backbone.transformer.proj_mm_tokens.weight
        return weight.new_zeros(batch, config.condition_tokens, config.condition_width)
