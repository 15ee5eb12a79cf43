"""The schema of a record: one clip in a shard.

L latent frames, C latent channels, N images, D width of a video feature, P latent frames before the clip.

Without video the arrays `image` and `motion` have no rows; for a clip that begins its file `preceding` has none. MDS
arrays cannot be empty, so these columns are raw bytes (little-endian float16, row by row) that `from_columns` reshapes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...models.config import CodecConfig, VideoConfig
from ..core.tasks import DOMAINS

COLUMNS: dict[str, str] = {
    "id": "str",
    "domain": "str",
    "latent_mean": "ndarray:float16",
    "latent_std": "ndarray:float16",
    "image": "bytes",
    "motion": "bytes",
    "captions": "json",
    "annotation": "json",
    "seconds": "float64",
    "preceding": "bytes",
}
OPTIONAL = ("preceding",)  # columns that shards of earlier revisions lack


@dataclass(frozen=True)
class Record:
    """One clip: latents (L, C), image (N, D), motion (steps, D); no rows without video; float16 when read."""

    id: str
    domain: str  # "audio" or "music"
    latent_mean: NDArray[np.floating[Any]]
    latent_std: NDArray[np.floating[Any]]
    image: NDArray[np.floating[Any]]
    motion: NDArray[np.floating[Any]]
    captions: list[str]
    annotation: dict[str, Any]
    seconds: float  # true length of the sound; the rest of the clip is padding
    # (P, C), P at most L: the mean latents of what precedes the clip in its file, up to where the clip begins
    preceding: NDArray[np.floating[Any]] = field(default_factory=lambda: np.empty((0, 0), np.float16))
    caption_ends: list[float] | None = None  # where each caption's share ends in [0, 1]; None: all alike; not stored


def to_columns(record: Record) -> dict[str, Any]:
    """The MDS columns of a record that has passed `validate`."""
    columns = {name: getattr(record, name) for name in COLUMNS}
    for name in ("image", "motion", "preceding"):
        columns[name] = columns[name].astype("<f2").tobytes()
    return columns


def clip_bytes(codec: CodecConfig, images: int, motion: int, dim: int) -> int:
    """Bytes of a record's features in a shard. Its texts add some hundred, what precedes it half of its latents."""
    return 2 * (2 * codec.frames * codec.latent_channels + (images + motion) * dim)


def from_columns(columns: Mapping[str, Any], dim: int) -> Record:
    """The record of an MDS sample; `dim` is D, `Features.video.dim`. With 0 its video is left out."""
    values = {name: columns[name] for name in COLUMNS if name in columns or name not in OPTIONAL}
    for name in ("image", "motion"):
        values[name] = np.frombuffer(values[name] if dim else b"", "<f2").reshape(-1, max(1, dim))
    before = np.frombuffer(values.get("preceding", b""), "<f2").reshape(-1, values["latent_mean"].shape[1])
    return Record(**{**values, "seconds": float(values["seconds"]), "preceding": before})


def validate(record: Record, codec: CodecConfig, video: VideoConfig | None) -> Record:
    """Check a record; return it with its features as float16, ready to be written.

    Raises:
        ValueError: a shape differs from the configuration, a value is not finite or beyond float16, or a text is empty.
    """
    latents = (codec.frames, codec.latent_channels)
    where = f"record {record.id!r}"
    if not record.id or record.domain not in DOMAINS:
        raise ValueError(f"{where}: id must not be empty and domain {record.domain!r} must be one of {DOMAINS}")
    if not 0 < record.seconds <= codec.seconds + 1e-6:
        raise ValueError(f"{where}: seconds is {record.seconds}, must be above 0 and at most {codec.seconds}")
    if any(not isinstance(text, str) or not text.strip() for text in record.captions):
        raise ValueError(f"{where}: captions must be texts that are not empty, got {record.captions!r}")
    try:
        json.dumps(record.annotation, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: annotation is not JSON ({error}): {record.annotation!r}") from error
    image, motion = record.image, record.motion
    has_video = len(image) > 0
    if has_video and not video:
        raise ValueError(f"{where}: has a video, and the configuration none")
    if has_video != (len(motion) > 0):
        raise ValueError(f"{where}: {len(image)} image and {len(motion)} motion features; give both or neither")
    steps, dim = (video.steps, video.dim) if video else (0, 0)
    before = record.preceding if len(record.preceding) else np.empty((0, codec.latent_channels), np.float16)
    if len(before) > codec.frames:
        raise ValueError(f"{where}, preceding: {len(before)} latent frames, at most a clip of {codec.frames}")
    return Record(
        id=record.id,
        domain=record.domain,
        latent_mean=_half(record.latent_mean, latents, f"{where}, latent_mean"),
        latent_std=_half(record.latent_std, latents, f"{where}, latent_std"),
        image=_half(image, (len(image), dim), f"{where}, image"),
        motion=_half(motion, (steps if has_video else 0, dim), f"{where}, motion"),
        captions=record.captions,
        annotation=record.annotation,
        seconds=float(record.seconds),
        preceding=_half(before, (len(before), codec.latent_channels), f"{where}, preceding"),
    )


def _half(array: NDArray[np.floating[Any]], shape: tuple[int, ...], where: str) -> NDArray[np.float16]:
    if array.shape != shape:
        raise ValueError(f"{where}: shape {array.shape}, the configuration says {shape}")
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{where}: dtype {array.dtype}, must be a floating type")
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: {np.count_nonzero(~np.isfinite(array))} values are not finite")
    largest = float(np.abs(array).max(initial=0.0))
    limit = float(np.finfo(np.float16).max)
    if largest > limit:
        raise ValueError(f"{where}: magnitude {largest:.6g} does not fit into float16, which ends at {limit:.6g}")
    return np.ascontiguousarray(array, dtype=np.float16)
