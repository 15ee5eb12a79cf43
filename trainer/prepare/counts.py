"""Count what a preparation's report shows: per block, and by addition over all blocks."""

import re
from collections.abc import Iterable, Mapping

from ..core.tasks import tasks_of_domain
from ..data.caption_weights import CAPTION_ORIGINS
from ..data.condition_draws import can_serve
from ..data.record import Record
from .encode import Rejection

LENGTH_EDGES = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)  # seconds: the edges of the histogram of files
# Words without information about a sound.
_STOP = frozenset(
    "a an and are as at be been by can each for from has have heard in into is it its of off on or over s sound sounds "
    "that the their then there this through to twice up was were while with".split()
)


class Counts:
    """Amounts by chart and name: "clips" and "seconds" by domain, "files" by outcome, and so on."""

    def __init__(self, charts: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self.charts: dict[str, dict[str, float]] = {name: dict(chart) for name, chart in (charts or {}).items()}

    def __getitem__(self, chart: str) -> dict[str, float]:
        return self.charts.get(chart, {})

    def to_json(self) -> dict[str, dict[str, float]]:
        return {name: dict(sorted(chart.items())) for name, chart in sorted(self.charts.items())}

    def add(self, other: "Counts") -> None:
        for chart, amounts in other.charts.items():
            for name, amount in amounts.items():
                self._add(chart, name, amount)

    def file(self, seconds: float, rejections: Iterable[Rejection]) -> None:
        """Count a file of which `seconds` are kept, after its records."""
        whole = False
        for rejection in rejections:
            whole = whole or rejection.start is None
            self._add("rejected files" if rejection.start is None else "rejected clips", rejection.reason)
        self._add("files", "kept" if seconds else "left out" if whole else "without a good clip")
        if seconds:
            self._add("lengths", str(sum(seconds >= edge for edge in LENGTH_EDGES)))

    def record(self, record: Record) -> None:
        notes, domain = record.annotation, record.domain
        self._add("clips", domain)
        self._add("seconds", domain, record.seconds)
        self._add("with video", domain, len(record.image) > 0)
        self._add("with captions", domain, bool(record.captions))
        self._add("with what precedes it", domain, len(record.preceding) > 0)
        self._add("captions", domain, len(record.captions))
        named = {
            "tasks": tasks_of(record),
            "terms": caption_terms(record.captions),
            "caption kinds": (f"{o['kind']} ({o['source']})" for o in notes.get(CAPTION_ORIGINS, ())),
            "categories": notes.get("category") or (),
            "genres": filter(None, [notes.get("genre")]),
            "moods": filter(None, [notes.get("mood")]),
            "instruments": notes.get("instruments") or (),
        }
        for chart, names in named.items():
            for name in names:
                self._add(chart, name)

    def _add(self, chart: str, name: str, amount: float = 1) -> None:
        amounts = self.charts.setdefault(chart, {})
        amounts[name] = amounts.get(name, 0) + amount


def tasks_of(record: Record) -> list[str]:
    """The tasks of its domain that a record can serve (section IV-B)."""
    return [task.name for task in tasks_of_domain(record.domain) if can_serve(record, task.name)]


def caption_terms(captions: Iterable[str]) -> set[str]:
    """The distinct informative words of a clip's captions."""
    words = {word for text in captions for word in re.findall(r"[^\W\d_][\w'-]+", text.lower())}
    return words - _STOP
