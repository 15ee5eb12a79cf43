"""Read the pictures that a sound is to fit.

C crops, M pictures.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..media.source import MediaError, MediaSource, Reason, open_media
from ..media.video_decode import FrameReader, video_span


@dataclass(frozen=True)
class VideoClip:
    """The pictures of a file from a second on."""

    path: Path
    start: float = 0.0  # seconds
    seconds: float | None = None  # None: to the end


@dataclass(frozen=True)
class PictureFormat:
    """What a scorer needs of a video."""

    rate: float  # pictures per second
    size: int  # pixels, height and width
    crops: int = 1  # squares of a picture, from one end of its long side to the other
    squeeze: bool = False  # the whole picture into a square, without its true proportions
    shortest: float = 0.0  # seconds
    longest: float = 30.0  # seconds from the start that are read


def read_pictures(clip: VideoClip, formats: Collection[PictureFormat]) -> dict[PictureFormat, Tensor]:
    """Those of a clip, as `pictures_of`."""
    with open_media(clip.path) as source:
        return pictures_of(source, clip.start, clip.seconds, formats)


def pictures_of(
    source: MediaSource, start: float, length: float | None, formats: Collection[PictureFormat]
) -> dict[PictureFormat, Tensor]:
    """(M, 3, size, size) uint8, or with several crops (M, C, 3, size, size), of every format: the picture shown at each
    moment, `length` seconds from `start` on, None for up to the end of the video.

    Raises MediaError where the video is missing, damaged, without pictures or shorter than a format needs.
    """
    span = video_span(source)
    seconds = min(span.seconds - start, length or math.inf)
    if seconds <= 0:
        raise MediaError(
            Reason.TOO_SHORT,
            f"{source.name}: the pictures end at {span.seconds:.2f} s, and the sound's begin at {start:g} s",
        )
    found = {}
    for wanted in formats:
        count = max(1, int(min(seconds, wanted.longest) * wanted.rate + 1e-6))
        if count < int(wanted.shortest * wanted.rate + 1e-6):
            raise MediaError(
                Reason.TOO_SHORT,
                f"{source.name}: {seconds:.2f} s of pictures from {start:g} s on, and a scorer needs "
                f"{wanted.shortest:g} s; leave it out",
            )
        with FrameReader(source, wanted.size, start, squeeze=wanted.squeeze, crops=wanted.crops) as reader:
            reader.check_begins(reader.begin + start)
            times = [reader.begin + start + i / wanted.rate for i in range(count)]
            found[wanted] = torch.from_numpy(np.stack(reader.nearest(times)))
    return found
