"""What a user gives to a generator as files: a sound with a hole, a beginning, a video.

L latent frames of a clip, C latent channels, S motion steps, D video feature width, c sound channels, n samples.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...models.config import CodecConfig, ModelConfig
from ...models.encoders.base import VideoEncoder
from ..data.batches import add_video_features, nearest_images
from ..media.clips import frames_in, read_sound
from ..media.source import MediaError
from ..media.video_decode import FrameReader, VideoSpan, video_span


@dataclass(frozen=True)
class Given:
    """A sound of any length, of which a part is kept, and the clip that its new part is made in."""

    wave: Tensor  # (c, n), all of the file
    first: int  # latent frame of the sound at which the clip begins
    frames: Tensor  # (L,), 1 in every latent frame of the clip that is kept
    made: tuple[int, int]  # latent frames of the sound that are made anew

    def clip(self, codec: CodecConfig) -> Tensor:
        """(c, samples of a clip), padded with zeros at the end."""
        begin = self.first * codec.hop
        piece = self.wave[:, begin : begin + codec.samples]
        return torch.nn.functional.pad(piece, (0, codec.samples - piece.shape[1]))


def sound_with_hole(path: Path, codec: CodecConfig, start: float, end: float) -> Given:
    """A file of which the latent frames that [start, end) in seconds touches are made anew, in a clip with the hole in
    its middle as far as the file allows.

    Raises:
        ValueError: the file cannot be read, or the hole is beyond its end or as long as a clip.
    """
    wave = _sound(path, codec)
    seconds = wave.shape[1] / codec.sample_rate
    if not 0 <= start < end <= seconds + 1e-3:
        raise ValueError(f"mask {start:g}-{end:g}: {path} lasts {seconds:.3f} s; the hole must lie within")
    total = math.ceil(wave.shape[1] / codec.hop)
    hole = math.floor(start * codec.rate + 1e-6), min(total, math.ceil(end * codec.rate - 1e-6))
    length = hole[1] - hole[0]
    if length >= min(codec.frames, total):
        raise ValueError(
            f"mask {start:g}-{end:g}: a clip is {codec.seconds:g} s, and nothing of the sound would be given in it; "
            f"make the hole shorter, or leave audio out"
        )
    first = max(0, min((hole[0] + hole[1] - codec.frames) // 2, total - codec.frames))
    frames = torch.ones(codec.frames)
    frames[hole[0] - first : hole[1] - first] = 0
    return Given(wave, first, frames, hole)


def sound_to_continue(path: Path, codec: CodecConfig, seconds: float | None, overlap: int) -> Given:
    """A file's first `seconds`, or all of it, in whole latent frames, to be continued: in a clip that begins with it,
    or, where it fills one, in a clip that begins with its last `overlap` frames.

    Raises:
        ValueError: the file cannot be read or is shorter than `seconds` or than a latent frame.
    """
    wave = _sound(path, codec)
    length = wave.shape[1] / codec.sample_rate
    if seconds is not None and seconds > length + 1e-3:
        raise ValueError(f"prefix {seconds:g}: {path} lasts {length:.3f} s; ask for that at most")
    # A frame that the sound fills only in part would be kept with silence in it.
    kept = math.floor(min(length, length if seconds is None else seconds) * codec.rate + 1e-6)
    if not kept:
        raise ValueError(f"{path}: shorter than one latent frame, {1 / codec.rate:.3f} s; give more to continue from")
    first = 0 if kept < codec.frames else kept - overlap
    frames = torch.zeros(codec.frames)
    frames[: kept - first] = 1
    return Given(wave, first, frames, (kept, first + codec.frames))


def span_of(path: Path) -> VideoSpan:
    """How long a video's pictures last. Raises ValueError where it cannot be read or holds none."""
    try:
        return video_span(path)
    except MediaError as error:
        raise ValueError(f"video: {error}") from None


def video_windows(path: Path, config: ModelConfig, encode: VideoEncoder, begins: Sequence[float]) -> Iterator[Tensor]:
    """Features (S, D) float16 of clips of a video that begin at these times, in seconds after the file's beginning and
    ascending; they may overlap, and the file is read once. The nearest picture stands for what is missing.

    Raises:
        ValueError: the file cannot be read or holds no pictures.
    """
    nearest = nearest_images(config)
    images, motion = (
        np.arange(frames_in(config.codec.seconds, rate)) / rate
        for rate in (config.video.image_rate, config.video.motion_rate)
    )
    try:
        with FrameReader(path, config.video.size, start=begins[0], threads=0) as reader:
            held: dict[float, np.ndarray] = {}
            for i, begin in enumerate(begins):
                end = begin + config.codec.seconds
                # What later clips need of the time of this one has to be taken now: pictures come in order.
                clips = [b for b in begins[i:] if b < end]
                times = {float(b + t) for b in clips for t in (*images, *motion) if b + t < end}
                missing = sorted(times - held.keys())
                held |= zip(missing, reader.nearest([reader.begin + t for t in missing]), strict=True)
                shown = [np.stack([held[float(begin + t)] for t in kind])[None] for kind in (images, motion)]
                yield _features(encode, torch.from_numpy(shown[0]), torch.from_numpy(shown[1]), nearest)
                held = {t: picture for t, picture in held.items() if len(clips) > 1 and t >= clips[1]}
    except MediaError as error:
        raise ValueError(f"video: {error}") from None


def _features(encode: VideoEncoder, images: Tensor, motion: Tensor, nearest: Tensor) -> Tensor:
    with torch.inference_mode():
        image_features, motion_features = (x[0].cpu() for x in encode(images, motion))
        video = torch.zeros(motion_features.shape, dtype=torch.float16)
        add_video_features(image_features, motion_features, nearest, video)
    return video


def _sound(path: Path, codec: CodecConfig) -> Tensor:
    try:
        return torch.from_numpy(read_sound(path, codec))
    except MediaError as error:
        raise ValueError(f"audio: {error}") from None
