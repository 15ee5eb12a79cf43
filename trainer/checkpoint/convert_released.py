"""Conversion of the authors' released files to a weights folder, once and for all.

model.safetensors   config.json   LICENSE   manifest.json
vae/    the autoencoder, as diffusers has it
clip/   CLIP's image encoder, if the checkpoint has it
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...models.audiox import WEIGHTS, SamplingConfig
from ...models.config import CodecConfig, ReleasedModelConfig, TextConfig, VideoConfig
from ...models.encoders.libraries import diffusers, transformers
from ...models.encoders.oobleck import FOLDER as VAE
from ...models.encoders.oobleck import OobleckCodec
from ...models.encoders.runtime import Runtime
from ...models.released.audiox import SILENCE, ReleasedAudioX
from ...models.released.autoencoder import autoencoder_shapes, to_diffusers
from ...models.released.config import ReleasedConfig
from ...models.released.network import ReleasedNetwork, from_released, released_shapes, unused_shapes
from ...models.weights import load_strict, write_errors
from ..core.files import atomic_output, refuse_existing
from ..core.integrity import file_entry, write_manifest
from .licences import CC_BY_NC, FILE, write_license
from .released_file import ReleasedTensors, read_autoencoder, read_checkpoint, refuse_difference

CLIP = "clip"
PROJECTION = "visual_projection.weight"  # of CLIP, in the release and never used
BASE = SamplingConfig("euler", 250, 6.0)
TURBO = SamplingConfig("renoise", 4, 1.0)
SEED = 0  # of the latents of a silent prompt


@dataclass(frozen=True)
class ReleasedSizes:
    """Sizes of all that the files hold. The defaults are the released ones."""

    model: ReleasedModelConfig = field(
        default_factory=lambda: ReleasedModelConfig(
            CodecConfig("oobleck", 44100, 2, 2048, 215, 64, f"./{VAE}"),
            TextConfig("t5", 768, 128, 128, "google-t5/t5-base"),
            VideoConfig("clip_tokens_sync", 768, 5, 25, 224, 240, 1, f"./{CLIP}", "weights/synchformer"),
            ReleasedConfig(),
        )
    )
    autoencoder: Mapping[str, Any] = field(default_factory=dict)  # where it differs from diffusers' defaults
    clip: Mapping[str, Any] = field(default_factory=dict)  # where it differs from ViT-B/32
    prompt_samples: int = 441_000  # of the sound in a prompt


class ReleasedLayout:
    """The networks of all released files, on the meta device, and the shapes of their tensors by released name."""

    def __init__(self, sizes: ReleasedSizes) -> None:
        clip_config = transformers().CLIPVisionConfig(**sizes.clip)
        with torch.device("meta"):
            network = ReleasedNetwork(sizes.model.released)
            self.autoencoder: Any = diffusers().AutoencoderOobleck(**sizes.autoencoder)
            clip = transformers().CLIPVisionModel(clip_config)
        self.stages = len(sizes.autoencoder.get("downsampling_ratios", (2, 4, 4, 8, 8)))
        self.network = released_shapes(network)
        self.unused = unused_shapes(sizes.model.released)
        # transformers 5 has no "vision_model." in front.
        vision = {f"vision_model.{n.removeprefix('vision_model.')}": x for n, x in clip.state_dict().items()}
        self.clip = {n: tuple(x.shape) for n, x in vision.items()}
        self.clip[PROJECTION] = (clip_config.projection_dim, clip_config.hidden_size)
        self.vae = autoencoder_shapes(self.autoencoder, self.stages)
        self.clip_config = clip_config


def convert_released(
    file: Path,
    vae: Path | None,
    out: Path,
    base: bool = False,
    dtype: str = "fp32",
    encoders: Mapping[str, str] | None = None,
    sizes: ReleasedSizes | None = None,
) -> list[str]:
    """Writes the released checkpoint `file`, with the autoencoder of `vae` or else its own, into the new folder `out`.

    `base` says that it is the base model, which is sampled in many guided steps. `encoders` says where "t5" and
    "synchformer" lie, which are in neither file, and "clip", which may be in the checkpoint. Returns what was found,
    line by line.

    Raises ValueError naming the file and the tensor that is missing, not known, of another shape or not finite, and
    where a file is truncated or holds anything but tensors.
    """
    refuse_existing(out)
    sizes = sizes or ReleasedSizes()
    layout = ReleasedLayout(sizes)
    found = read_checkpoint(file, layout.network, layout.unused, layout.clip, layout.vae)
    report = [*found.report, *_load_autoencoder(layout, found, file, vae)]
    config = _with_encoders(sizes.model, dict(encoders or {}), bool(found.clip))
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    with torch.device("meta"):
        model = ReleasedAudioX(config, BASE if base else TURBO, CC_BY_NC)
    with atomic_output(out) as partial:
        partial.mkdir()
        with write_errors(out):
            layout.autoencoder.save_pretrained(partial / VAE)
            silence = draw_silence(partial / VAE, config.codec, sizes.prompt_samples)
            tensors = {name: x.to(kind) for name, x in (from_released(found.network) | {SILENCE: silence}).items()}
            load_strict(model, tensors, assign=True)
            model.save_pretrained(partial)
            if config.video.image_weights == f"./{CLIP}":
                _save_clip(layout, found.clip, partial / CLIP)
        write_license(partial, CC_BY_NC)
        files = {str(f.relative_to(partial)): file_entry(f) for f in sorted(partial.rglob("*")) if f.is_file()}
        write_manifest(partial, {"source": file.name, "dtype": dtype, "license": CC_BY_NC, "files": files})
    return [*report, f"licence: {CC_BY_NC}, not for commercial use; it is kept in {out / FILE}"]


def draw_silence(vae: Path, config: CodecConfig, samples: int) -> Tensor:
    """Latents (L, C) of a silent prompt: mean + deviation · noise, as the release draws them for each clip."""
    codec = OobleckCodec.load(replace(config, weights=str(vae)), Runtime.for_device(torch.device("cpu")))
    mean, deviation = codec.encode(torch.zeros(1, config.audio_channels, samples))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(SEED))
    return (mean + deviation * noise)[0].contiguous()


def _load_autoencoder(layout: ReleasedLayout, found: ReleasedTensors, file: Path, vae: Path | None) -> list[str]:
    """From its own file or else the checkpoint. Raises ValueError where both have one, and not the same."""
    tensors, report = found.autoencoder, []
    if vae:
        tensors, line = read_autoencoder(vae, layout.vae)
        report.append(line)
        if found.autoencoder:
            remedy = f"the autoencoder in {file}; leave --vae out to take that one"
            refuse_difference(tensors, found.autoencoder, f"{vae}: ", remedy)
    if not tensors:
        raise ValueError(f"{file} has no autoencoder; give its own file as --vae")
    renamed = to_diffusers(tensors, layout.autoencoder, layout.stages)
    load_strict(layout.autoencoder, {name: x.float() for name, x in renamed.items()}, assign=True)
    return report


def _with_encoders(config: ReleasedModelConfig, places: dict[str, str], has_clip: bool) -> ReleasedModelConfig:
    image_weights = places.get("clip") or (f"./{CLIP}" if has_clip else "openai/clip-vit-base-patch32")
    motion_weights = places.get("synchformer") or config.video.motion_weights
    return replace(
        config,
        text=replace(config.text, weights=places.get("t5") or config.text.weights),
        video=replace(config.video, image_weights=image_weights, motion_weights=motion_weights),
    )


def _save_clip(layout: ReleasedLayout, tensors: Mapping[str, Tensor], folder: Path) -> None:
    folder.mkdir()
    layout.clip_config.save_pretrained(folder)
    vision = {name: x.float().contiguous() for name, x in tensors.items() if name != PROJECTION}
    save_file(vision, folder / WEIGHTS)
