"""Completion pairs (section IV-B): a clip of music, and what precedes it in its own file."""

from dataclasses import replace

from ...models.config import CodecConfig
from ..core.tasks import has_completion_pairs
from ..data.record import Record
from ..media.audio_decode import REMAINDER
from .manifest import ManifestEntry

ROUNDING = 0.002  # seconds: a manifest has three digits


class CompletionPairs:
    """Adds to each record the latents of the one before it, if that ends where the record begins."""

    def __init__(self, codec: CodecConfig) -> None:
        self._codec = codec
        self._sound: tuple[str, ...] = ()
        self._before: Record | None = None
        self._end = 0.0

    def add_preceding(self, entry: ManifestEntry, record: Record) -> Record:
        """The record with its `preceding`. Call it for the records of a block in the order of the manifest."""
        sound, start = _sound_of(entry)
        same, before, gap = sound == self._sound, self._before, start + record.annotation["source"]["start"] - self._end
        self._sound, self._before = sound, record
        self._end = start + record.annotation["source"]["start"] + record.seconds
        if before is None or not same or not self._adjoin(before, record, gap):
            return record
        frames = int(before.seconds * self._codec.rate + 1e-6)  # that its sound fills
        return replace(record, preceding=before.latent_mean[:frames])

    def _adjoin(self, before: Record, record: Record, gap: float) -> bool:
        """Between the two may lie what cutting leaves out: a rest of a line that is too short for a clip."""
        if before.domain != record.domain or not has_completion_pairs(record.domain):
            return False
        return -ROUNDING <= gap < REMAINDER * self._codec.seconds + ROUNDING


def _sound_of(entry: ManifestEntry) -> tuple[tuple[str, ...], float]:
    """What names the whole sound that a line is of, and where in it the line's file begins, in seconds. A stem is of
    the file that it was separated from."""
    match entry.annotation.get("extra", {}).get("separated"):
        case {"audio": str(audio), "stem": str(stem), "start": int() | float() as start}:
            return (audio, stem), 0.0 if entry.video else start  # a film's stem begins with silence
    return (entry.audio,), 0.0
