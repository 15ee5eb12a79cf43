"""Decode a line of a manifest into what a model hears and sees of it, in a decoder."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...models.config import CodecConfig
from ..manifest.manifest import ManifestEntry
from ..manifest.message_parts import picture_part, sound_part
from ..media.audio_decode import SoundSegment, decode_all
from ..media.source import open_media
from ..media.video_decode import FrameReader
from ..prepare.decode import Rejection
from ..stages.stage import StageResult, StageTask, result_of

SOUND_CODEC = CodecConfig(
    "logmel", sample_rate=16_000, audio_channels=1, hop=160, frames=1, latent_channels=1
)  # what models hear
PICTURE_SIZE = 336  # pixels, height and width
TOO_LONG = "too long to be heard"


@dataclass(frozen=True)
class MediaParts:
    """The sound, and pictures if there are any, as parts of a message."""

    parts: list[dict[str, Any]]
    seconds: float


@dataclass(frozen=True)
class Hear:
    """Yields what is heard of a line. One of more than `longest` seconds stays in the manifest as it is."""

    pictures: int  # of a video
    longest: float

    def __call__(self, task: StageTask) -> Iterator[MediaParts | StageResult | None]:
        return result_of(task.entry, self._hear(task.entry))

    def _hear(self, entry: ManifestEntry) -> Iterator[MediaParts | StageResult]:
        with open_media(entry.audio, entry.allow_private) as source:
            try:
                wave = decode_all(source, SOUND_CODEC, SoundSegment(entry.start, entry.end), self.longest)
            except ValueError as error:
                detail = f"{error}: cut it by `launch/prepare.py segment`, or raise --longest"
                yield StageResult([{}], [Rejection(entry.line, entry.name, TOO_LONG, detail)])
                return
        seconds = wave.shape[1] / SOUND_CODEC.sample_rate
        parts = [sound_part(wave[0], SOUND_CODEC.sample_rate)]
        if entry.video and self.pictures:
            places = (np.arange(self.pictures) + 0.5) / self.pictures
            with FrameReader(entry.video, PICTURE_SIZE, entry.start, allow_private=entry.allow_private) as reader:
                found = reader.nearest([reader.begin + entry.start + seconds * float(place) for place in places])
            parts += [picture_part(picture) for picture in found]
        yield MediaParts(parts, seconds)
