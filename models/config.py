"""The architecture of a set of weights: the sizes of its networks, and the frozen encoders that it needs.

The same dataclasses are the `model` section of a run's configuration and of the `config.json` in a weights folder. A
weights folder thus says how to turn media into conditions, and latents into sound.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from . import strict
from .released.config import ReleasedConfig
from .strict import Depth, Length, Rate, Size

# More is a mistake, and would compute for days before it shows, or diverge.
MAX_STEPS = 10_000  # of a sampler
MAX_GUIDANCE = 1000.0
MAX_CLIP = 3600.0  # seconds
MODALITIES = ("video", "audio", "text")
WEIGHT_PATHS = ("weights", "image_weights", "motion_weights", "file")  # keys that say where weights lie


@dataclass(frozen=True)
class CodecConfig:
    """The audio autoencoder. `logmel` needs no weights; `oobleck` is Stable Audio Open's (diffusers).

    A latent frame stands for `hop` samples. A clip has `frames` of them: frames·hop/sample_rate seconds.
    """

    kind: Literal["logmel", "oobleck"]
    sample_rate: Annotated[int, Field(ge=1, le=4_000_000)]  # Hz
    audio_channels: Annotated[int, Field(ge=1, le=64)]
    hop: Size  # samples per latent frame
    frames: Length  # L, latent frames per clip
    latent_channels: Size  # C
    weights: str = ""  # folder or name on the hub; empty if none are needed

    def __post_init__(self) -> None:
        if self.seconds > MAX_CLIP:
            raise ValueError(f"frames: {self.frames} are a clip of {self.seconds:g} s; at most {MAX_CLIP:g}")

    @property
    def samples(self) -> int:
        return self.frames * self.hop

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate

    @property
    def rate(self) -> float:
        """Latent frames per second."""
        return self.sample_rate / self.hop


@dataclass(frozen=True)
class TextConfig:
    """The text encoder. `words` hashes each word and needs no weights; `t5` is transformers' T5 encoder."""

    kind: Literal["words", "t5"]
    dim: Size  # width of a text feature
    max_tokens: Length
    pad_to_multiple_of: Length = 32  # the padded length of a batch of texts is a multiple of this
    weights: str = ""


@dataclass(frozen=True)
class VideoConfig:
    """The video encoders: one of single images at a low rate, one of motion at a higher rate (sections IV-A, VI-A).

    `frames` needs no weights; `clip_sync` is CLIP ViT-B/32 and Synchformer. `clip_tokens_sync` is the same for the
    released network, which takes every token of an image, and images squeezed into a square. A clip has `steps` motion
    features; `pool` neighbours become one condition token.
    """

    kind: Literal["frames", "clip_sync", "clip_tokens_sync"]
    dim: Size  # width of a video feature
    image_rate: Rate  # images per second (5 in the paper)
    motion_rate: Rate  # frames per second (25 in the paper)
    size: Annotated[int, Field(ge=1, le=4096)]  # pixels, height and width
    steps: Length  # motion features per clip (240 for Synchformer over 10 s)
    pool: Length  # motion features per token
    image_weights: str = ""
    motion_weights: str = ""

    @property
    def tokens(self) -> int:
        return self.steps // self.pool

    @property
    def squeeze(self) -> bool:
        """Whether pictures are made square without their true proportions, where otherwise they are cropped."""
        return self.kind == "clip_tokens_sync"


@dataclass(frozen=True)
class TransformerConfig:
    """A plain pre-norm transformer (the temporal transformers of section IV-A, the self-attention of MAF)."""

    width: Size
    depth: Depth
    heads: Size


@dataclass(frozen=True)
class FusionConfig:
    """Multimodal Adaptive Fusion (section IV-A, Eq. 1). Table V ablates `gates` and `attention`."""

    queries: Size  # learnable queries per modality
    width: Size
    depth: Depth  # self-attention layers over the queries
    heads: Size
    enabled: bool = True
    gates: bool = True
    attention: bool = True  # of the learnable queries; without it there are gates only


@dataclass(frozen=True)
class BackboneConfig:
    """The dual-stream MMDiT."""

    width: Size
    depth: Depth
    heads: Size
    mlp_hidden: Size
    linear_path: bool = False  # needed if the width is not well above the latent channels, see `LinearPath`


@dataclass(frozen=True)
class EncodersConfig:
    """The frozen encoders and the codec, which any network needs."""

    codec: CodecConfig
    text: TextConfig
    video: VideoConfig | None  # null: a model of sound alone

    @property
    def video_rows(self) -> int:
        """Feature vectors of a clip's video that the network takes."""
        return self.video.steps if self.video else 0

    @property
    def video_dim(self) -> int:
        """Width of such a vector."""
        return self.video.dim if self.video else 0

    @property
    def video_tokens(self) -> int:
        """Condition tokens that `ModelConfig` makes of a clip's video."""
        return self.video.tokens if self.video else 0

    @property
    def latent_frames(self) -> int:
        """Of what the network generates."""
        return self.codec.frames


@dataclass(frozen=True)
class ModelConfig(EncodersConfig):
    """The architecture: two sets of weights with the same one are interchangeable."""

    video_temporal: TransformerConfig | None  # null where `video` is
    audio_temporal: TransformerConfig
    fusion: FusionConfig
    backbone: BackboneConfig

    def __post_init__(self) -> None:
        if (self.video is None) != (self.video_temporal is None):
            names = ("video", "video_temporal") if self.video is None else ("video_temporal", "video")
            raise ValueError("{1}: {0} is null; set both to null for a model of sound alone, or none".format(*names))
        for path, width, heads in (
            ("backbone", self.backbone.width, self.backbone.heads),
            ("fusion", self.fusion.width, self.fusion.heads),
            ("audio_temporal", self.audio_temporal.width, self.audio_temporal.heads),
            *([("video_temporal", video.width, video.heads)] if (video := self.video_temporal) else []),
        ):
            if width % heads or width // heads % 2:
                raise ValueError(f"{path}: width {width} over {heads} heads must give an even head width")
        if self.video and self.video.steps % self.video.pool:
            raise ValueError(f"video: {self.video.steps} steps are not a multiple of pool {self.video.pool}")

    @property
    def least_weights(self) -> int:
        """A lower bound of the number of weights, within a factor of about 20: one matrix for each pair of widths."""
        backbone, fusion, audio = self.backbone, self.fusion, self.audio_temporal
        pairs = [
            (backbone.depth * backbone.width, backbone.width + backbone.mlp_hidden),
            (backbone.width, fusion.width + self.codec.latent_channels),
            (fusion.width, self.text.dim),
            (audio.width, audio.depth * audio.width + self.codec.latent_channels + fusion.width),
        ]
        if video := self.video_temporal:
            pairs.append((video.width, video.depth * video.width + self.video_dim + fusion.width))
        if fusion.enabled and fusion.gates:
            pairs.append((fusion.width, fusion.width))
        if fusion.enabled and fusion.attention:
            pairs.append((fusion.width, fusion.queries + fusion.depth * fusion.width))
        return sum(rows * columns for rows, columns in pairs)

    @property
    def depth(self) -> int:
        """Blocks of the backbone."""
        return self.backbone.depth

    @property
    def modalities(self) -> tuple[str, ...]:
        """Of the condition tokens, in their order."""
        return MODALITIES if self.video else MODALITIES[1:]


@dataclass(frozen=True)
class ReleasedModelConfig(EncodersConfig):
    """The architecture that the authors released, which is another one. Learned matrices fix all of its lengths.

    A clip, and the sound in a prompt, has `codec.frames` latents; the network generates `released.latents`, and what
    goes beyond the clip is cut.
    """

    video: VideoConfig
    released: ReleasedConfig

    @property
    def least_weights(self) -> int:
        """As of `ModelConfig`."""
        return self.released.least_weights

    def __post_init__(self) -> None:
        own = self.released
        fixed = {
            "codec.frames": (self.codec.frames, own.prompt_latents),
            "codec.latent_channels": (self.codec.latent_channels, own.channels),
            "text.dim": (self.text.dim, own.condition_width),
            "text.max_tokens": (self.text.max_tokens, own.tokens),
            "text.pad_to_multiple_of": (self.text.pad_to_multiple_of, own.tokens),
            "video.dim": (self.video.dim, own.condition_width),
            "video.steps": (self.video.steps, own.sync_steps),
        }
        for path, (configured, needed) in fixed.items():
            if configured != needed:
                raise ValueError(f"{path}: {configured}, and the released network of these sizes takes {needed}")
        if self.video.kind != "clip_tokens_sync":
            raise ValueError(f"video.kind: {self.video.kind!r}; the released network takes clip_tokens_sync")
        if own.latents < self.codec.frames:
            raise ValueError(f"released.latents: {own.latents} are fewer than a clip's {self.codec.frames}")

    @property
    def video_rows(self) -> int:
        """Every token of every image, and the motion features after them."""
        return self.released.frames * self.released.frame_tokens + self.released.sync_steps

    @property
    def latent_frames(self) -> int:
        """Of what the network generates: those of a clip, and more."""
        return self.released.latents

    @property
    def depth(self) -> int:
        """Blocks of the backbone."""
        return self.released.depth


AnyModelConfig = ModelConfig | ReleasedModelConfig


def _architecture(value: Any) -> str:
    return type(value).__name__ if not isinstance(value, dict) else KINDS["released" in value]


KINDS = ("ModelConfig", "ReleasedModelConfig")
# The section of a configuration, which is of either architecture; the key `released` decides.
ModelSection = Annotated[
    Annotated[ModelConfig, Tag(KINDS[0])] | Annotated[ReleasedModelConfig, Tag(KINDS[1])], Discriminator(_architecture)
]


def with_weights_inside(config: AnyModelConfig, folder: Path) -> Any:
    """A configuration whose encoders' weights lie within a folder, under paths that begin with "./", as seen from
    here."""

    def inside(section: Any) -> Any:
        paths = {name: getattr(section, name, "") for name in WEIGHT_PATHS}
        return replace(section, **{name: str(folder / path) for name, path in paths.items() if path[:2] == "./"})

    sections = {name: getattr(config, name) for name in ("codec", "text", "video")}
    return replace(config, **{name: inside(section) for name, section in sections.items() if section is not None})


def without_weight_paths(config: Any) -> Any:
    """The JSON of a configuration, for comparisons: where weights lie does not change what they are."""
    return strict.without(strict.to_dict(config), WEIGHT_PATHS)
