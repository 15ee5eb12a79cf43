"""The filters of whole lines: a JSON file with limits in numbers, words that may not occur, and networks that judge.

    {"max_silent": 0.8,
     "words": {"title": ["interview", "breaking news"]},
     "scorers": [
       {"name": "speech", "scorer": {"kind": "panns", "weights": "weights/panns"}, "classes": [0], "max": 0.2},
       {"name": "quality", "scorer": {"kind": "audiobox", "weights": "weights/audiobox"}, "metric": "PQ", "min": 5}]}

Imports no torch, so that a process that decodes starts quickly.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ...models.strict import NonNegative, PositiveFloat, Share, texts
from ..core.config_reader import parse_file
from ..core.tasks import DOMAINS, Domain
from ..manifest.manifest import ManifestEntry
from ..prepare.filters import FiltersConfig
from ..scorers.config import ScorerConfig, located

MEASURED = ("silent share", "clipped share", "peak", "static share", "seconds")  # values without a network
Domains = Annotated[tuple[Domain, ...], Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"\S")]
Words = Annotated[tuple[Annotated[str, Field(pattern=r"\w")], ...], Field(min_length=1)]


@dataclass(frozen=True)
class ScorerFilter:
    """A number that a network gives a line, and its limits. With `classes` it is the share of the line's segments in
    which one of them sounds, else a metric of the scorer. A line without the text or the pictures that a scorer needs
    is not judged by it."""

    name: Name  # in the reasons, on the page and in the line's `scores`
    scorer: ScorerConfig  # as in an evaluation's scorers.json
    metric: str = ""  # one of the scorer's metrics; default: its only one
    classes: tuple[NonNegative, ...] = ()  # instead of a metric: columns of the scorer's probabilities
    above: Share = 0.5  # probability from which on a class sounds in a segment
    seconds: PositiveFloat = 2.0  # length of a segment
    min: float | None = None  # a line is kept from this number on
    max: float | None = None  # and up to this one
    domains: Domains = DOMAINS

    def __post_init__(self) -> None:
        if self.min is None and self.max is None:
            raise ValueError("min: missing; give the number that a line needs, or `max`, which it may not exceed")
        if self.metric and self.classes:
            raise ValueError(f"metric: {self.metric!r} next to classes; give one of them")

    @property
    def limit(self) -> float:
        """For a chart."""
        return self.max if self.min is None else self.min  # type: ignore[return-value]  # one of them is there

    def fault(self, number: float) -> tuple[str, str] | None:
        """Reason and detail if a line with this number is left out."""
        if self.min is not None and not number >= self.min:  # NaN is left out as well
            return self.name, f"{number:.4g}, less than {self.min:g}"
        if self.max is not None and not number <= self.max:
            return self.name, f"{number:.4g}, more than {self.max:g}"
        return None


@dataclass(frozen=True)
class LineFilters(FiltersConfig):
    """Limits for the lines to keep. The defaults keep everything that is intact and not silent."""

    words: dict[str, Words] = field(default_factory=dict)  # whole words, in any case, that a line may not have
    scorers: tuple[ScorerFilter, ...] = ()  # networks, and the limits of their numbers

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [*MEASURED, *(scorer.name for scorer in self.scorers)]
        if len(set(names)) < len(names):
            raise ValueError(f"scorers: each needs a name of its own, none of {', '.join(MEASURED)}; got {names[5:]}")

    def limits(self) -> dict[str, float]:
        """By the name of the measured value, for the page."""
        numbers = self.max_silent, self.max_clipped, self.min_peak, self.max_static, self.min_file_seconds
        return dict(zip(MEASURED, numbers, strict=True)) | {scorer.name: scorer.limit for scorer in self.scorers}


def read_filters(path: Path) -> LineFilters:
    """Paths of networks start from the file's folder, if they exist there, or else from here.

    Raises ValueError where a key is wrong, FileNotFoundError for a missing file.
    """
    filters = parse_file(LineFilters, path)
    scorers = [replace(scorer, scorer=located(scorer.scorer, path.parent)) for scorer in filters.scorers]
    return replace(filters, scorers=tuple(scorers))


def words_fault(entry: ManifestEntry, filters: LineFilters) -> tuple[str, str] | None:
    """Reason and detail if a line has a word that it may not have."""
    for key, words in filters.words.items():
        text = "\n".join(texts(_value(entry, key)))
        for word in words if text else ():
            pattern = r"\s+".join(re.escape(part) for part in word.split())
            if found := re.search(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE):
                return "word", f"{key} has {found[0]!r}"
    return None


def _value(entry: ManifestEntry, key: str) -> Any:
    """What a line says under a key."""
    if key == "SED":
        return [event["event"] for event in entry.annotation.get("SED", [])]
    own = {"audio": entry.name, "video": entry.video, "captions": entry.captions, "domain": entry.domain}
    return own.get(key) or entry.annotation.get(key) or entry.annotation.get("extra", {}).get(key)
