"""The files that a user gives to a generator: a sound with a hole, a beginning, a video.

L latent frames of a clip, C latent channels, S motion steps, D video feature width, c sound channels, n samples.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...models.config import AnyModelConfig, CodecConfig
from ...models.encoders.base import VideoEncoder
from ..data.batches import join_video_features, nearest_images
from ..media.clips import frames_in, read_sound
from ..media.source import MediaError
from ..media.video_decode import FrameReader, VideoSpan, video_span

LONGEST_GIVEN = 3600.0  # seconds: all of a given sound is in memory, and a small file may hold days


@dataclass(frozen=True)
class InputSound:
    """A given sound of any length, and the clip in which its new part is generated."""

    wave: Tensor  # (c, n), all of the file
    first_frame: int  # latent frame of the sound at which the clip begins
    given_mask: Tensor  # (L,), 1 in every latent frame of the clip that is given
    new_frames: tuple[int, int]  # start and end, in latent frames of the sound, of the part that is generated

    def clip(self, codec: CodecConfig) -> Tensor:
        """(c, samples of a clip), padded with zeros at the end."""
        begin = self.first_frame * codec.hop
        return _padded(self.wave[:, begin : begin + codec.samples], codec)

    def preceding(self, codec: CodecConfig) -> tuple[Tensor, int]:
        """The clip before that one, or as much of it as there is, (c, samples of a clip) padded at the end; and how
        many latent frames the sound fills."""
        frames = min(self.first_frame, codec.frames)
        end = self.first_frame * codec.hop
        return _padded(self.wave[:, end - frames * codec.hop : end], codec), frames


def load_sound_with_hole(path: Path, codec: CodecConfig, start: float, end: float) -> InputSound:
    """A file in which the latent frames that touch [start, end), in seconds, are generated again. The hole is in the
    middle of its clip, as far as the file allows.

    Raises:
        ValueError: the file cannot be read, or the hole is beyond its end or as long as a clip.
    """
    wave = _read_sound(path, codec)
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
    given_mask = torch.ones(codec.frames)
    given_mask[hole[0] - first : hole[1] - first] = 0
    return InputSound(wave, first, given_mask, hole)


def load_beginning(
    path: Path, codec: CodecConfig, seconds: float | None, overlap: int, follow: bool = False
) -> InputSound:
    """A file's first `seconds`, or all of it, in whole latent frames, to be continued. The clip begins with it, or with
    its last `overlap` frames where it is at least as long as a clip; with `follow` it begins where the sound ends.

    Raises:
        ValueError: the file cannot be read or is shorter than `seconds` or than a latent frame.
    """
    wave = _read_sound(path, codec)
    length = wave.shape[1] / codec.sample_rate
    if seconds is not None and seconds > length + 1e-3:
        raise ValueError(f"prefix {seconds:g}: {path} lasts {length:.3f} s; ask for that at most")
    # A frame that the sound fills only in part would be given with silence in it.
    given = math.floor(min(length, length if seconds is None else seconds) * codec.rate + 1e-6)
    if not given:
        raise ValueError(f"{path}: shorter than one latent frame, {1 / codec.rate:.3f} s; give more to continue from")
    first = given if follow else 0 if given < codec.frames else given - overlap
    given_mask = torch.zeros(codec.frames)
    given_mask[: given - first] = 1
    return InputSound(wave, first, given_mask, (given, first + codec.frames))


def _padded(piece: Tensor, codec: CodecConfig) -> Tensor:
    return torch.nn.functional.pad(piece, (0, codec.samples - piece.shape[1]))


def read_varied(path: Path, codec: CodecConfig) -> Tensor:
    """A sound (c, n) that is varied. Raises ValueError where the file cannot be read."""
    return _read_sound(path, codec)


def read_video_span(path: Path) -> VideoSpan:
    """Length of a video's pictures. Raises ValueError where it cannot be read or holds none."""
    try:
        return video_span(path)
    except MediaError as error:
        raise ValueError(f"video: {error}") from None


def encode_video_clips(
    path: Path, config: AnyModelConfig, encode: VideoEncoder, starts: Sequence[float]
) -> Iterator[Tensor]:
    """Features (S, D) float16 of clips of a video, as the network takes them. `starts` are seconds from the file's
    beginning, ascending; the clips may overlap, and the file is read once. The nearest picture stands for a missing
    one.

    Raises:
        ValueError: the file cannot be read or holds no pictures.
    """
    frames = config.video
    assert frames is not None  # there is an encoder for it
    nearest = nearest_images(frames)
    seconds = config.codec.seconds
    images, motion = (np.arange(frames_in(seconds, rate)) / rate for rate in (frames.image_rate, frames.motion_rate))
    try:
        with FrameReader(path, frames.size, starts[0], threads=0, squeeze=frames.squeeze) as reader:
            decoded: dict[float, np.ndarray] = {}
            for i, start in enumerate(starts):
                # Pictures come in order: those that later, overlapping clips need are read now.
                overlapping = [other for other in starts[i:] if other < start + seconds]
                times = {float(o + t) for o in overlapping for t in (*images, *motion) if o + t < start + seconds}
                missing = sorted(times - decoded.keys())
                decoded |= zip(missing, reader.nearest([reader.begin + t for t in missing]), strict=True)
                pictures = [np.stack([decoded[float(start + t)] for t in kind])[None] for kind in (images, motion)]
                video = torch.zeros(config.video_rows, config.video_dim, dtype=torch.float16)
                with torch.inference_mode():
                    found, moving = encode(torch.from_numpy(pictures[0]), torch.from_numpy(pictures[1]))
                    join_video_features(found[0].cpu(), moving[0].cpu(), nearest, video)
                yield video
                decoded = {t: p for t, p in decoded.items() if len(overlapping) > 1 and t >= overlapping[1]}
    except MediaError as error:
        raise ValueError(f"video: {error}") from None


def _read_sound(path: Path, codec: CodecConfig) -> Tensor:
    try:
        return torch.from_numpy(read_sound(path, codec, LONGEST_GIVEN))
    except MediaError as error:
        raise ValueError(f"audio: {error}") from None
    except ValueError as error:
        raise ValueError(f"audio: {path}: {error}; give a part of it") from None
