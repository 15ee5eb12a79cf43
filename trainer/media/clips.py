"""Clips from media: sound and pictures of the same moment, cut to the codec's length.

Everything streams, so that a file of ten hours needs no more memory than one clip. A file's own time line begins where
its first track does, as players show it; the sound of one file and the pictures of another begin together.
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
from .source import open_media
from .video_decode import VIDEO_SLACK, FrameReader


@dataclass(frozen=True)
class Clip:
    """A piece of a file as long as the codec's clip, padded with zeros at the end."""

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
    frames: VideoConfig,
    start: float = 0.0,
    end: float | None = None,
    threads: int = 1,
    sound_slack: float = SLACK,
    video_slack: float = VIDEO_SLACK,
) -> Iterator[Clip]:
    """Cuts the segment [start, end) of a file, in seconds, into consecutive clips.

    audio, video: paths or addresses, the same for a file that gives both. threads: of the video decoder, 0 for as many
    as there are cores. sound_slack, video_slack: seconds that the sound may lack of its declared length, the pictures
    of the sound's, before the file counts as damaged.

    The last clip is padded with zeros; when it is not the only one and shorter than a tenth of a clip it is dropped.
    The level stays as it is, unless a clip's peak is above 1: that clip is scaled to peak 1. Frames are those nearest
    in time; a still picture stands for every moment.

    Raises:
        MediaError: a file is missing, damaged or empty, also after some clips have been given: then those are no good
            either.
    """
    with ExitStack() as stack:
        sound = stack.enter_context(open_media(audio))
        segment = SoundSegment(start, end, video is not None, sound_slack)
        if video is None:
            empty = np.empty((0, 3, frames.size, frames.size), np.uint8)
            for piece in decode_clips(sound, codec, segment):
                yield _clip(piece, empty, empty)
            return
        pictures = sound if video == audio else video
        reader = stack.enter_context(FrameReader(pictures, frames.size, start, threads, video_slack))
        reader.check_begins(reader.begin + start)
        for piece in decode_clips(sound, codec, segment):
            yield _clip(piece, *_clip_pictures(reader, codec, frames, start, piece))


def read_sound(location: Path | str, codec: CodecConfig) -> Wave:
    """All the sound of a file at the codec's rate and channels: (audio_channels, n), scaled where its peak is above 1.

    Raises:
        MediaError: the file is missing, damaged or empty.
    """
    with open_media(location) as source:
        return decode_all(source, codec)


def frames_in(seconds: float, rate: float) -> int:
    """Frames of a rate whose time lies within a clip; the small number keeps 2.048 s at 15.625 from giving 33."""
    return math.ceil(seconds * rate - 1e-6)


def _clip_pictures(
    reader: FrameReader, codec: CodecConfig, frames: VideoConfig, start: float, piece: SoundPiece
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The pictures at both rates; one pass over the video serves them."""
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
