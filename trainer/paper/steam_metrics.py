"""STEAM, the measures of AudioTime (section A-B; Xie et al., 2024), from detected and asked events.

An event has all its occurrences, (start, end) in seconds. Its whole lasts from its first start to its last end.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..scorers.statistics import Floats

Occurrences = Sequence[tuple[float, float]]
Detected = Mapping[str, Occurrences]  # by the name of the event
SEGMENT = 1.0  # seconds of a segment of the timestamp F1
OVERLAP = 0.5  # of the shorter event's whole, up to which two events still follow one another


@dataclass(frozen=True)
class AskedEvents:
    """What a caption asks for, by event: `value` is seconds for "duration", times for "frequency"; `spans` are the
    occurrences for "ordering" and "timestamp"."""

    kind: str
    value: dict[str, float]
    spans: dict[str, Occurrences]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.value or self.spans)


def ordering_error(asked: AskedEvents, heard: Detected) -> float:
    """1 unless both events are heard, the one that is asked for first starts first, and it ends before the other has
    begun, or overlaps it by less than OVERLAP of the shorter one."""
    first, second = sorted(asked.spans, key=lambda name: min(asked.spans[name]))
    wholes = [whole(heard.get(name, ())) for name in (first, second)]
    if not all(wholes):
        return 1.0
    (start, end), (later, last) = (span for span in wholes if span)
    follows = start < later and end - later < OVERLAP * min(end - start, last - later)
    return 0.0 if follows else 1.0


def duration_errors(asked: AskedEvents, heard: Detected) -> list[float]:
    """Seconds by which the whole of each event differs from what is asked; all of it where it is not heard."""
    errors = []
    for name, seconds in asked.value.items():
        span = whole(heard.get(name, ()))
        errors.append(abs(seconds - (span[1] - span[0])) if span else seconds)
    return errors


def frequency_errors(asked: AskedEvents, heard: Detected) -> list[float]:
    """By how many each event occurs too often or too seldom."""
    return [abs(times - len(heard.get(name, ()))) for name, times in asked.value.items()]


def segment_counts(asked: AskedEvents, heard: Detected) -> tuple[int, int, int]:
    """Segments in which an event is both asked for and heard, those where it is asked for, and those where it is
    heard, over all events."""
    both = wanted = found = 0
    for name, spans in asked.spans.items():
        true, heard_in = _segments(spans), _segments(heard.get(name, ()))
        both, wanted, found = both + len(true & heard_in), wanted + len(true), found + len(heard_in)
    return both, wanted, found


def segment_f1(counts: Floats, index: Tensor | None = None) -> float:
    """Of rows of `segment_counts` (N, 3), all of them or those at `index`: 2 both / (asked + heard); 0 where there are
    no segments."""
    both, wanted, found = (counts if index is None else counts[index.numpy()]).sum(axis=0)
    return float(2 * both / (wanted + found)) if wanted + found else 0.0


def whole(spans: Occurrences) -> tuple[float, float] | None:
    """From the first start to the last end; None where nothing was heard."""
    return (min(start for start, _ in spans), max(end for _, end in spans)) if spans else None


def _segments(spans: Occurrences) -> set[int]:
    """Numbers of the segments that the occurrences touch."""
    return {i for start, end in spans for i in range(math.floor(start / SEGMENT), math.ceil(end / SEGMENT))}


def as_counts(rows: Sequence[tuple[int, int, int]]) -> Floats:
    return np.array(rows, dtype=np.float64).reshape(-1, 3)
