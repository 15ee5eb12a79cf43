"""Cut the lines of a manifest into segments: by time, where it is quietest, or along the scenes of its pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from ..manifest.manifest import ANNOTATION_FIELDS, ManifestEntry, clip_annotation, clip_captions, written_caption
from ..prepare.decode import Rejection
from ..prepare.filters import WINDOW
from .measure import PICTURES, Measured, measure, pieces
from .stage import Judging, StageResult, StageTask, result_of

SHORT_REST = "short rest"
CUT = 40.0  # of 255: mean change of a pixel from picture to picture that is a cut
QUIET_PART = 1 / 3  # the last part of a segment in which a quiet place for its end is looked for
Places = Literal["time", "silences", "scenes"]
PLACES: tuple[str, ...] = get_args(Places)


@dataclass(frozen=True)
class Segmentation:
    """Where lines are cut."""

    seconds: float = 10.0  # the longest segment
    shortest: float = 1.0  # seconds; a shorter rest is left out
    at: Places = "time"

    def __post_init__(self) -> None:
        if not 0 < self.shortest <= self.seconds:
            raise ValueError(f"shortest {self.shortest:g}: must be above 0, and at most seconds, {self.seconds:g}")


@dataclass(frozen=True)
class SegmentJudge:
    """Cuts one line, in a decoder."""

    segmentation: Segmentation

    def __call__(self, task: StageTask) -> Judging:
        return result_of(task.entry, self._judge(task.entry))

    def _judge(self, entry: ManifestEntry) -> Judging:
        measured = yield from measure(pieces(entry, self.segmentation.at == "scenes" and entry.video is not None))
        kept, left_out, kept_seconds = list[dict[str, Any]](), list[Rejection](), 0.0
        for start, end in cut(measured, self.segmentation):
            if end - start < self.segmentation.shortest:
                detail = f"{end - start:.2f} s, shorter than {self.segmentation.shortest:g} s"
                left_out.append(Rejection(entry.line, entry.name, SHORT_REST, detail, entry.start + start))
            else:
                kept.append(segment_changes(entry, start, end, measured.seconds))
                kept_seconds += end - start
        yield StageResult(kept, left_out, measured.seconds, kept_seconds, {"segments": float(len(kept))})


def cut(measured: Measured, segmentation: Segmentation) -> list[tuple[float, float]]:
    """Start and end of each segment, in seconds from the line's start, without gaps."""
    edges = [0.0, *_scene_cuts(measured.changes), measured.seconds] if segmentation.at == "scenes" else None
    edges = sorted({edge for edge in edges or [0.0, measured.seconds] if 0 <= edge <= measured.seconds})
    found = []
    for start, end in pairwise(edges):
        begin = start
        while end - begin > segmentation.seconds:
            stop = begin + segmentation.seconds
            if segmentation.at == "silences":
                stop = _quietest(measured.levels, begin, segmentation.seconds)
            found.append((begin, stop))
            begin = stop
        found.append((begin, end))
    return found


def _scene_cuts(changes: Sequence[float]) -> list[float]:
    """The moments, in seconds, between two pictures of which the second shows another scene."""
    return [(step + 1) / PICTURES.image_rate for step, change in enumerate(changes) if change > CUT]


def _quietest(levels: Sequence[float], begin: float, seconds: float) -> float:
    """The middle of the quietest window in the last part of the segment that begins at `begin`."""
    first = round((begin + seconds * (1 - QUIET_PART)) / WINDOW)
    last = max(first + 1, int((begin + seconds) / WINDOW))
    return float((first + int(np.argmin(levels[first:last])) + 0.5) * WINDOW)


def segment_changes(entry: ManifestEntry, start: float, end: float, total: float) -> dict[str, Any]:
    """What a new line says otherwise than the old one: its place, and the part of the annotation that is true of it."""
    whole = start == 0 and end == total
    notes = clip_annotation(entry, start, end - start, whole)
    changes: dict[str, Any] = {key: notes.get(key) for key in ANNOTATION_FIELDS if key in entry.annotation}
    if (left := clip_captions(entry, whole)) != entry.captions:
        changes["captions"] = [written_caption(text, entry) for text in left]
    return changes | {"start": round(entry.start + start, 3), "end": round(entry.start + end, 3)}
