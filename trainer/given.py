"""What a user gives to a generator as files: a sound with a hole or a beginning, a video.

L latent frames, C latent channels, S motion steps, D video feature width.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from ..models.config import CodecConfig, ModelConfig
from ..models.encoders.build import build_codec, build_video_encoder
from .data.media import Clip, FrameReader, MediaError, frames_in, read_clips
from .data.record import Record
from .unseen import video_features


@dataclass(frozen=True)
class Given:
    """A sound's latents (L, C) and where they are kept: (L,), 1 in every frame that is given."""

    latents: Tensor
    frames: Tensor

    def made(self, codec: CodecConfig) -> tuple[float, float]:
        """From when to when, in seconds, the sound is not given."""
        missing = (self.frames == 0).nonzero()
        return float(missing.min()) / codec.rate, float(missing.max() + 1) / codec.rate


def sound_with_hole(path: Path, config: ModelConfig, start: float, end: float) -> Given:
    """A file's first clip, given but for the latent frames that [start, end) in seconds touches.

    Raises:
        ValueError: the file cannot be read, or the hole is empty, beyond the clip or all of it.
    """
    codec = config.codec
    if not 0 <= start < end <= codec.seconds + 1e-6:
        raise ValueError(
            f"mask {start:g}-{end:g}: start and end must lie in 0 to {codec.seconds:g} s, the length of a clip, and "
            f"the end after the start"
        )
    frames = torch.ones(codec.frames)
    frames[math.floor(start * codec.rate + 1e-6) : math.ceil(end * codec.rate - 1e-6)] = 0
    if not frames.any():
        raise ValueError(f"mask {start:g}-{end:g}: nothing of the sound would be given; leave --audio out instead")
    return Given(_latents(_first_clip(path, config), codec), frames)


def sound_to_continue(path: Path, config: ModelConfig, seconds: float | None) -> Given:
    """The beginning of a clip: a file's first `seconds`, or all of a file that is shorter than a clip.

    Raises:
        ValueError: the file cannot be read or is shorter than `seconds`, or nothing would be left to continue.
    """
    codec, clip = config.codec, _first_clip(path, config)
    if seconds is not None and not 0 < seconds <= clip.seconds + 1e-6:
        raise ValueError(f"prefix {seconds:g}: {path} gives {clip.seconds:.3f} s of a clip; ask for that at most")
    # A frame that the sound fills only in part would be kept with silence in it.
    count = math.floor((clip.seconds if seconds is None else seconds) * codec.rate + 1e-6)
    if count >= codec.frames:
        raise ValueError(
            f"{path}: its {clip.seconds:.3f} s fill the clip of {codec.seconds:g} s and leave nothing to continue; say "
            f"with --prefix how many seconds to keep"
        )
    if not count:
        raise ValueError(f"{path}: shorter than one latent frame, {1 / codec.rate:.3f} s; give more to continue from")
    frames = torch.zeros(codec.frames)
    frames[:count] = 1
    return Given(_latents(clip, codec), frames)


def read_video(path: Path, config: ModelConfig) -> Tensor:
    """The first clip's length of a video -> features (S, D); sound is not needed, and its last frame stands for what is
    missing by half a second at most.

    Raises:
        ValueError: the file cannot be read, holds no pictures or ends too early.
    """
    video, seconds = config.video, config.codec.seconds
    images, motion = (
        [i / rate for i in range(frames_in(seconds, rate))] for rate in (video.image_rate, video.motion_rate)
    )
    times = sorted({*images, *motion})
    try:
        with FrameReader(path, video.size) as reader:
            pictures = dict(zip(times, reader.nearest(times), strict=True))
            reader.check_reaches(seconds)
    except (MediaError, av.error.FFmpegError) as error:
        raise ValueError(f"video: {str(error) or type(error).__name__}") from None
    stacks = (torch.from_numpy(np.stack([pictures[t] for t in kind]))[None] for kind in (images, motion))
    with torch.inference_mode():
        image_features, motion_features = (x[0].float().numpy() for x in build_video_encoder(video)(*stacks))
    empty = np.empty((0, 0), np.float32)
    record = Record(path.name, "audio", empty, empty, image_features, motion_features, [], {}, seconds)
    return video_features(config, record)


def _first_clip(path: Path, config: ModelConfig) -> Clip:
    try:
        return next(read_clips(path, None, config.codec, config.video))
    except MediaError as error:
        raise ValueError(f"audio: {error}") from None


def _latents(clip: Clip, codec: CodecConfig) -> Tensor:
    with torch.inference_mode():
        mean, _ = build_codec(codec).encode(torch.from_numpy(clip.wave)[None])
    return mean[0].float().cpu()
