"""The schema of a record: one clip in a shard.

L latent frames, C latent channels, N images, D width of a video feature.

Without video the arrays `image` and `motion` have no rows. MDS arrays cannot be empty, so these two columns are raw
bytes (little-endian float16, row by row) that `from_columns` reshapes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
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
}


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


def to_columns(record: Record) -> dict[str, Any]:
    """The MDS columns of a record that has passed `validate`."""
    columns = {field.name: getattr(record, field.name) for field in fields(Record)}
    for name in ("image", "motion"):
        columns[name] = columns[name].astype("<f2").tobytes()
    return columns


def from_columns(columns: Mapping[str, Any], dim: int) -> Record:
    """The record of an MDS sample; `dim` is D, `Features.video.dim`."""
    values = {name: columns[name] for name in COLUMNS}
    for name in ("image", "motion"):
        values[name] = np.frombuffer(values[name], "<f2").reshape(-1, dim)
    return Record(**{**values, "seconds": float(values["seconds"])})


def validate(record: Record, codec: CodecConfig, video: VideoConfig) -> Record:
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
    if has_video != (len(motion) > 0):
        raise ValueError(f"{where}: {len(image)} image and {len(motion)} motion features; give both or neither")
    return Record(
        id=record.id,
        domain=record.domain,
        latent_mean=_half(record.latent_mean, latents, f"{where}, latent_mean"),
        latent_std=_half(record.latent_std, latents, f"{where}, latent_std"),
        image=_half(image, (len(image), video.dim), f"{where}, image"),
        motion=_half(motion, (video.steps if has_video else 0, video.dim), f"{where}, motion"),
        captions=record.captions,
        annotation=record.annotation,
        seconds=float(record.seconds),
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
