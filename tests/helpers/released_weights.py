"""The authors' files, small and random, with all of their names."""

import json
from pathlib import Path

import torch
from torch import Tensor

from audiox_trainer.models import strict
from audiox_trainer.models.config import CodecConfig, ReleasedModelConfig, TextConfig, VideoConfig
from audiox_trainer.models.encoders.libraries import diffusers
from audiox_trainer.models.released.autoencoder import released_name
from audiox_trainer.models.released.config import ReleasedConfig
from audiox_trainer.trainer.checkpoint.convert_released import ReleasedLayout, ReleasedSizes, convert_released
from audiox_trainer.trainer.checkpoint.released_file import AUTOENCODERS, CLIP
from audiox_trainer.trainer.core.config import PretrainConfig
from audiox_trainer.trainer.core.distill_config import DistillConfig
from tests.helpers.encoder_weights import save_synchformer, save_t5
from tests.helpers.small_config import small_distill_config, small_json

# Clips of 1.024 s: 6 images of 5 tokens, 16 sync features, 32 latents, of which the network generates 36.
SIZES = ReleasedSizes(
    ReleasedModelConfig(
        CodecConfig("oobleck", 8000, 2, 256, 32, 8, "./vae"),
        TextConfig("t5", 32, 16, 16, "weights/t5"),
        VideoConfig("clip_tokens_sync", 32, 5, 25, 32, 16, 1, "./clip", "weights/synchformer"),
        ReleasedConfig(
            width=32, depth=2, heads=4, hidden=64, condition_width=32, fusion_heads=2, fusion_depth=1, queries=4,
            temporal_depth=1, temporal_heads=2, temporal_head_width=8, frames=6, frame_tokens=5, sync_steps=16,
            tokens=16, prompt_latents=32, latents=36, channels=8,
        ),
    ),
    autoencoder={
        "encoder_hidden_size": 16, "downsampling_ratios": [2, 4, 4, 8], "channel_multiples": [1, 1, 2, 2],
        "decoder_channels": 8, "decoder_input_channels": 8, "audio_channels": 2, "sampling_rate": 8000,
    },
    clip={
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 16, "projection_dim": 16,
    },
    prompt_samples=8250,
)  # fmt: skip


def save_released(folder: Path) -> Path:
    """A weights folder that was converted from random files, and its encoders next to it."""
    encoders = {"t5": str(save_t5(folder / "t5")), "synchformer": str(save_synchformer(folder / "synchformer"))}
    file = save_checkpoint(folder / "turbo.ckpt", released_state())
    convert_released(file, None, folder / "weights", encoders=encoders, sizes=SIZES)
    return folder / "weights"


def released_config(weights: Path, *overrides: str) -> PretrainConfig:
    """The small run's configuration for these weights."""
    return strict.parse(PretrainConfig, small_json(None, *_sections(weights), *overrides))


def released_distill_config(weights: Path, *overrides: str) -> DistillConfig:
    return small_distill_config(None, *_sections(weights)[:1], *overrides)


def _sections(weights: Path) -> list[str]:
    model = json.loads((weights / "config.json").read_text().replace('"./', f'"{weights}/'))["model"]
    return [f"model={json.dumps(model)}", f"init.weights={weights}"]


def released_state(sizes: ReleasedSizes = SIZES) -> dict[str, Tensor]:
    """What a released checkpoint holds, every name of it."""
    layout = ReleasedLayout(sizes)
    torch.manual_seed(0)
    state = {name: random_tensor(name, shape) for name, shape in (layout.network | layout.unused).items()}
    state |= {CLIP + name: random_tensor(name, shape) for name, shape in layout.clip.items()}
    autoencoder = released_autoencoder(sizes)
    return state | {prefix + name: x.clone() for prefix in AUTOENCODERS for name, x in autoencoder.items()}


def released_autoencoder(sizes: ReleasedSizes = SIZES) -> dict[str, Tensor]:
    """What its own file holds: weights as the library initialises them, so that decoded sound is finite."""
    torch.manual_seed(1)
    model = diffusers().AutoencoderOobleck(**sizes.autoencoder)
    stages = len(sizes.autoencoder["downsampling_ratios"])
    state = {released_name(name, stages): x.detach() for name, x in model.state_dict().items()}
    return {name: x.flatten() if name.endswith(("alpha", "beta")) else x for name, x in state.items()}


def random_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """As after some training: nothing is zero, and sums keep their size."""
    if name.endswith("norm.weight") or ("norm" in name and len(shape) == 1 and name.endswith("weight")):
        return 1 + 0.1 * torch.randn(shape)
    fan = max(1, int(torch.tensor(shape[1:]).prod())) if len(shape) > 1 else 25
    return torch.randn(shape) / fan**0.5


def save_checkpoint(file: Path, state: dict[str, Tensor], section: str = "") -> Path:
    """As torch saves it, and with what a trainer puts next to the tensors if they have a section of their own."""
    torch.save({section: state, "global_step": 7} if section else state, file)
    return file
