"""Statistics of captions and annotation for a stage's page, as in the paper's Fig. 3, A.1, A.2 and Table A.2."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...models import strict
from ..manifest.line_values import Origin, caption_origin
from ..prepare.counts import caption_terms

NAMED = {"category": "Sounds", "genre": "Genres", "mood": "Moods", "instruments": "Instruments"}
WORDS = 5  # per column of the lengths
LONGEST = 60  # words; longer captions are in the last column


@dataclass
class DomainStatistics:
    """Amounts of one domain. `named`: lines by what they are annotated with, by title."""

    lines: int = 0
    seconds: float = 0.0  # of sound, where that is known
    timed: int = 0  # lines of which it is known
    captions: int = 0
    words: Counter[int] = field(default_factory=Counter)  # captions by their length, in columns of WORDS
    kinds: Counter[str] = field(default_factory=Counter)  # captions
    terms: Counter[str] = field(default_factory=Counter)  # lines
    named: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def lengths(self) -> list[tuple[str, float]]:
        """Captions by words, from the shortest to the longest that occurs."""
        last = max(self.words, default=-1)
        return [
            (f"{WORDS * i}–{WORDS * i + WORDS - 1}" if WORDS * i < LONGEST else f"≥ {LONGEST}", float(self.words[i]))
            for i in range(last + 1)
        ]


class CaptionStatistics:
    """Adds up the lines of a manifest, by domain."""

    def __init__(self) -> None:
        self.domains: dict[str, DomainStatistics] = defaultdict(DomainStatistics)

    def add(self, lines: Iterable[str], seconds: float) -> None:
        """Count lines as they are written, with the length of the sound of each, 0 if that is unknown."""
        for line in lines:
            self._add(strict.parse_json(line), seconds)

    def _add(self, line: Mapping[str, Any], seconds: float) -> None:
        found = self.domains[line.get("domain", "audio")]
        found.lines += 1
        found.seconds += seconds
        found.timed += seconds > 0
        captions = _captions(line)
        found.captions += len(captions)
        for text, origin in captions.items():
            found.words[min(len(text.split()), LONGEST) // WORDS] += 1
            found.kinds[f"{origin.kind} ({origin.source})"] += 1
        found.terms.update(caption_terms(captions))
        for key, title in NAMED.items():
            names = line.get(key) or ()
            found.named[title].update({names} if isinstance(names, str) else set(names))


def _captions(line: Mapping[str, Any]) -> dict[str, Origin]:
    texts = dict[str, Origin]()
    for caption in line.get("captions", ()):
        given = {"text": caption} if isinstance(caption, str) else dict(caption)
        text = given.pop("text")
        texts[text] = Origin(**given)
    if line.get("caption"):
        texts.setdefault(line["caption"], caption_origin(line.get("annotated")))
    return texts
