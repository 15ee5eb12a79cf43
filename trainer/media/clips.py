"""Cut media into clips: sound and pictures of the same moment, as long as the codec's clip.

Everything streams, so a file of ten hours needs no more memory than one clip. Time 0 is where a file's first track
begins, as in players; if sound and pictures come from two files, both begin at 0.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...models.config import CodecConfig, VideoConfig
from .audio_decode import SLACK, SoundPiece, SoundSegment, Wave, decode_all, decode_clips
from .source import MediaSource, open_media
from .video_decode import VIDEO_SLACK, FrameReader


@dataclass(frozen=True)
class Clip:
    """A part of a file as long as the codec's clip, padded with zeros at the end."""

    start: float  # seconds after the start of the segment it was cut from
    seconds: float  # true length of the sound
    wave: Wave  # (audio_channels, samples) float32, peak at most 1
    images: NDArray[np.uint8]  # (N, 3, size, size) uint8 at image_rate; no rows without video
    motion: NDArray[np.uint8]  # (M, 3, size, size) uint8 at motion_rate; no rows without video
    clipped: float = 0.0  # share of the samples, as they were decoded, that ran into full scale

    @property
    def peak(self) -> float:
        """dB of full scale."""
        return float(20 * np.log10(max(np.abs(self.wave).max(), 1e-9)))


def read_clips(
    audio: Path | str,
    video: Path | str | None,
    codec: CodecConfig,
    frames: VideoConfig | None,
    start: float = 0.0,
    end: float | None = None,
    threads: int = 1,
    sound_slack: float = SLACK,
    video_slack: float = VIDEO_SLACK,
    allow_private: bool = False,
) -> Iterator[Clip]:
    """Cuts the segment [start, end) of a file, in seconds, into consecutive clips.

    audio, video: paths or addresses; the same one if a file has both. frames: None leaves pictures out. threads: of the
    video decoder, 0 for one per core. sound_slack: seconds that the sound may be shorter than declared, and
    video_slack: seconds that the pictures may be shorter than the sound, before the file counts as damaged.
    allow_private: as of `open_media`.

    The last clip is padded with zeros. It is dropped if it is shorter than a tenth of a clip and not the only one.
    Levels are kept, but a clip with a peak above 1 is scaled to peak 1. Frames are the nearest in time; a still picture
    serves for every moment.

    Raises:
        MediaError: a file is missing, damaged or empty. This may happen after some clips, which are then invalid too.
    """
    with ExitStack() as stack:
        sound = stack.enter_context(open_media(audio, allow_private))
        segment = SoundSegment(start, end, video is not None and frames is not None, sound_slack)
        if video is None or frames is None:
            size = frames.size if frames else 0
            empty = np.empty((0, 3, size, size), np.uint8)
            for piece in decode_clips(sound, codec, segment):
                yield _clip(piece, empty, empty)
            return
        pictures = sound if video == audio else video
        picture_reader = FrameReader(pictures, frames.size, start, threads, video_slack, frames.squeeze, allow_private)
        reader = stack.enter_context(picture_reader)
        reader.check_begins(reader.begin + start)
        for piece in decode_clips(sound, codec, segment):
            yield _clip(piece, *_clip_pictures(reader, codec, frames, start, piece))


def read_sound(location: Path | str | MediaSource, codec: CodecConfig, longest: float | None = None) -> Wave:
    """Read all sound of a file at the codec's rate and channels: (audio_channels, n), scaled if its peak is above 1.

    Raises:
        MediaError: the file is missing, damaged or empty.
        ValueError: it is longer than `longest` seconds.
    """
    with open_media(location) as source:
        return decode_all(source, codec, longest=longest)


def frames_in(seconds: float, rate: float) -> int:
    """The number of frames within a clip. The small number keeps 2.048 s at 15.625 Hz from giving 33."""
    return math.ceil(seconds * rate - 1e-6)


def _clip_pictures(
    reader: FrameReader, codec: CodecConfig, frames: VideoConfig, start: float, piece: SoundPiece
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The pictures at both rates, in one pass over the video."""
    begin = reader.begin + start + piece.start
    kinds = [
        {begin + i / rate: i for i in range(frames_in(codec.seconds, rate))}
        for rate in (frames.image_rate, frames.motion_rate)
    ]
    images, motion = (np.empty((len(places), 3, frames.size, frames.size), np.uint8) for places in kinds)
    times = sorted(set().union(*kinds))
    for time, picture in zip(times, reader.views(times), strict=True):
        for places, pictures in zip(kinds, (images, motion), strict=True):
            if time in places:
                pictures[places[time]] = picture
    reader.check_reaches(begin + piece.seconds)
    return images, motion


def _clip(piece: SoundPiece, images: NDArray[np.uint8], motion: NDArray[np.uint8]) -> Clip:
    return Clip(piece.start, piece.seconds, piece.wave, images, motion, piece.clipped)
