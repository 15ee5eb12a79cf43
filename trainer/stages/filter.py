"""Judge whole lines, before annotation is paid for: by their words, by what decoding shows, and last by networks.

The numbers are the limits for clips in `configs/filters.json`, held to a line as a whole.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from ..manifest.manifest import ManifestEntry
from ..media.source import Reason
from ..prepare.decode import Rejection
from ..prepare.filters import Filtered, FiltersConfig, file_fault
from .duplicates import line_fingerprint
from .filter_config import LineFilters, words_fault
from .measure import Measured, measure, pieces
from .stage import Judging, StageResult, StageTask, result_of

Fault = tuple[str, str]  # reason and detail


@dataclass(frozen=True)
class FilterJudge:
    """Decides on one line, in a decoder."""

    filters: LineFilters
    duplicates: bool = False  # fingerprints are made, to find them
    device: str = ""  # of the networks; default: a GPU of the machine, else the CPU

    def __call__(self, task: StageTask) -> Judging:
        return result_of(task.entry, self._judge(task.entry))

    def _judge(self, entry: ManifestEntry) -> Judging:
        filters, measured, values, scores = self.filters, Measured(), dict[str, float](), dict[str, float]()
        fault = words_fault(entry, filters)
        if not fault:
            clips = pieces(entry, True, filters.max_missing_sound, filters.max_missing_video)
            measured = yield from measure(clips, self.duplicates)
            values = line_values(measured, filters)
            fault = line_fault(measured, values, filters)
        if filters.scorers and not fault:
            scores, fault = yield from self._score(entry)
            values |= scores
        if fault:
            left_out = [Rejection(entry.line, entry.name, *fault)]
            yield StageResult(left_out=left_out, seconds=measured.seconds, values=values)
            return
        seconds, prints = measured.seconds, line_fingerprint(measured.energies, measured.looks)
        yield StageResult([_with_scores(entry, scores)], [], seconds, seconds, values, prints)

    def _score(self, entry: ManifestEntry) -> Generator[None, None, tuple[dict[str, float], Fault | None]]:
        """The numbers of the networks, and why they leave the line out."""
        from .scorer_filters import score_line  # takes seconds: torch

        try:
            scores = yield from score_line(entry, self.filters, self.device)
        except ValueError as error:  # of a network that refuses this sound, or gives what is no number
            return {}, ("scorer", str(error))
        judged = [scorer.fault(scores[scorer.name]) for scorer in self.filters.scorers if scorer.name in scores]
        finite = {name: number for name, number in scores.items() if math.isfinite(number)}
        return finite, next(filter(None, judged), None)


def _with_scores(entry: ManifestEntry, scores: dict[str, float]) -> dict[str, Any]:
    """What a kept line says otherwise: the numbers of this filter next to those of earlier ones."""
    before = entry.annotation.get("extra", {}).get("scores")
    rounded = {name: float(f"{number:.4g}") for name, number in scores.items()}
    return {"scores": {**(before if isinstance(before, dict) else {}), **rounded}} if scores else {}


def line_values(measured: Measured, filters: FiltersConfig) -> dict[str, float]:
    """The numbers that decide, by name."""
    values = {"seconds": measured.seconds, "peak": measured.peak, "clipped share": measured.clipped}
    values["silent share"] = _share(measured.levels, filters.silence_level)
    if measured.changes:
        values["static share"] = _share(measured.changes, filters.static_threshold)
    return values


def _share(values: list[float], limit: float) -> float:
    """The share of values below a limit."""
    return sum(value < limit for value in values) / max(len(values), 1)


def line_fault(measured: Measured, values: dict[str, float], filters: FiltersConfig) -> Fault | None:
    """Reason and detail if a line is left out."""
    if fault := file_fault(measured.seconds, True, filters):
        return fault
    if measured.seconds < filters.min_clip_seconds:
        return Filtered.SHORT_CLIP, f"{measured.seconds:.2f} s of sound, less than {filters.min_clip_seconds:g}"
    if measured.peak < filters.min_peak:
        return Reason.SILENT.value, f"nothing above {filters.min_peak:g} dB"
    limits = (
        ("clipped share", filters.max_clipped, Filtered.CLIPPING, "of the samples at full scale"),
        ("silent share", filters.max_silent, Filtered.SILENCE, f"below {filters.silence_level:g} dB"),
        ("static share", filters.max_static, Filtered.STATIC, "of the time the picture does not move"),
    )
    for name, limit, reason, what in limits:
        if values.get(name, 0.0) > limit:
            return reason, f"{values[name]:.1%} {what}, more than {limit:.1%}"
    return None
