"""Decode, cut and filter the media of a manifest's line: the work that needs a CPU and no network.

Imports no torch, so that a process for it starts quickly.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from ...models.config import CodecConfig, VideoConfig
from ..core.credentials import redacted
from ..manifest.manifest import ManifestEntry
from ..media.clips import Clip, read_clips
from ..media.source import MediaError, Reason
from .filters import FiltersConfig, clip_fault, file_fault

PIECE = 4  # clips of a file per piece: with 10 s and 224-pixel video they take 180 MB


@dataclass(frozen=True)
class EncoderSettings:
    """The configurations that decide a record's features, and the device of the encoders."""

    codec: CodecConfig
    video: VideoConfig | None
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    device: str = "cpu"


@dataclass(frozen=True)
class EntryTask:
    """One line of a manifest to decode."""

    encoders: EncoderSettings
    entry: ManifestEntry
    alone: bool = False  # with all the memory of its machine

    def __str__(self) -> str:
        return f"line {self.entry.line} ({self.entry.name})"


@dataclass(frozen=True)
class Rejection:
    """A line of a manifest that is left out, or the part of it that begins at `start` seconds of the segment, as a line
    of a preparation's `rejected.jsonl` or of a stage's `left_out.jsonl`."""

    line: int
    audio: str
    reason: str
    detail: str
    start: float | None = None


@dataclass(frozen=True)
class DecodedClips:
    """The clips of a file, of `total` ones, that passed the filters, and the rejections of the others."""

    clips: list[Clip]
    rejections: list[Rejection]
    total: int  # clips, with the rejected ones


def decode_entry(task: EntryTask) -> Iterator[DecodedClips | Rejection]:
    """Yield a file, a few clips at a time. The last item may reject the whole file, with its earlier clips."""
    entry, encoders = task.entry, task.encoders
    clips = read_clips(
        entry.audio,
        entry.video,
        encoders.codec,
        encoders.video,
        entry.start,
        entry.end,
        sound_slack=encoders.filters.max_missing_sound,
        video_slack=encoders.filters.max_missing_video,
        allow_private=entry.allow_private,
    )
    seconds = 0.0
    try:
        while batch := list(islice(clips, PIECE)):
            seconds = batch[-1].start + batch[-1].seconds
            if fault := file_fault(seconds, False, encoders.filters):
                yield Rejection(entry.line, entry.name, *fault)
                return
            faults = [clip_fault(clip, encoders.codec.sample_rate, encoders.filters) for clip in batch]
            rejections = [clip_rejection(entry, c, f) for c, f in zip(batch, faults, strict=True) if f]
            yield DecodedClips([c for c, f in zip(batch, faults, strict=True) if not f], rejections, len(batch))
    except MediaError as error:
        yield Rejection(entry.line, entry.name, error.reason.value, str(error))
        return
    except (OSError, MemoryError):
        raise  # the machine is at fault
    except Exception as error:  # one odd file among a million must not stop the work
        detail = redacted(f"{entry.name}: {type(error).__name__}: {error}")
        yield Rejection(entry.line, entry.name, Reason.UNDECODABLE.value, detail)
        return
    if fault := file_fault(seconds, True, encoders.filters):
        yield Rejection(entry.line, entry.name, *fault)


def clip_rejection(entry: ManifestEntry, clip: Clip, fault: tuple[str, str]) -> Rejection:
    return Rejection(entry.line, entry.name, *fault, clip.start)
