"""What a stage of curation is: it decides on each line of a manifest, and says why."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..core.credentials import redacted
from ..core.english import amount, amounts_sentence
from ..manifest.manifest import ManifestEntry
from ..manifest.prices import USAGE, Price, Usage
from ..media.source import MediaError, Reason
from ..prepare.decode import Rejection
from ..workers.effort import Effort
from ..workers.pool import Pool


@dataclass(frozen=True)
class StageTask:
    """One line of a manifest."""

    entry: ManifestEntry
    alone: bool = False  # with all the memory of its machine

    def __str__(self) -> str:
        return f"line {self.entry.line} ({self.entry.name})"


@dataclass(frozen=True)
class StageResult:
    """What becomes of a line."""

    changes: list[dict[str, Any]] = field(default_factory=list)  # of each new line; None removes a key
    left_out: list[Rejection] = field(default_factory=list)
    seconds: float = 0.0  # of sound that were read
    kept_seconds: float = 0.0
    values: dict[str, float] = field(default_factory=dict)  # that decided, by name
    fingerprint: str = ""  # of a kept line, if near duplicates are looked for
    amounts: dict[str, float] = field(default_factory=dict)  # that are added up, by name


Judging = Iterator[Any]  # None now and then, as a sign of life, and one StageResult, or what a model is to hear
Judge = Callable[[StageTask], Judging]


def result_of(entry: ManifestEntry, judging: Judging) -> Judging:
    """What `judging` yields, and where the media turn out to be damaged that the line is left out.

    Raises OSError or MemoryError if the machine is at fault.
    """
    try:
        yield from judging
        return
    except MediaError as error:
        fault = error.reason.value, str(error)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # one odd file among a million must not stop the work
        fault = Reason.UNDECODABLE.value, redacted(f"{entry.name}: {type(error).__name__}: {error}")
    yield StageResult(left_out=[Rejection(entry.line, entry.name, *fault)])


LineResults = dict[int, tuple[StageResult, Effort]]  # by number of the line, with what judging it took
Asker = Callable[[Iterable[ManifestEntry], Pool[StageTask]], LineResults]


class Asking(Protocol):
    """What a stage asks a model about the lines that its judge has decoded."""

    @property
    def longest(self) -> float:
        """Seconds of the longest line that is asked about."""
        ...

    def asked(self, entry: ManifestEntry) -> Usage:
        """What is asked about a line at most."""
        ...

    def makers(self, workers: int) -> int:
        """How many of the workers may ask."""
        ...

    def asker(self, answers: Path, workers: int) -> Callable[[], Asker]:
        """What each of the makers calls once. `answers` is the file in which all of them keep what they were told."""
        ...


@dataclass(frozen=True)
class Stage:
    """A stage by name, with all that decides its result."""

    name: str
    settings: Any  # as JSON
    judge: Judge
    thresholds: dict[str, float] = field(default_factory=dict)  # of measured values, for the page
    asking: Asking | None = None
    price: Price = field(default_factory=Price)  # of the questions
    at_most: float | None = None  # money; a stage with a higher forecast does not begin
    gpus: bool = False  # its judge has networks that run on GPUs, where there are any


@dataclass(frozen=True)
class StageWorkers:
    """Who works, as of `prepare_files.Workers`."""

    count: int = 1
    address: str = ""
    limit: float = 1800.0
    unreachable: int = 10
    allow_private: bool = False


@dataclass(frozen=True)
class StageSummary:
    """The amounts of a stage."""

    lines: int
    seconds: float
    kept_lines: int
    kept_seconds: float
    left_out: dict[str, int]
    effort: Effort
    amounts: dict[str, float] = field(default_factory=dict)  # by name
    money: float = 0.0

    def __str__(self) -> str:
        said = f"kept {amount(self.kept_lines, 'line')} ({self.kept_seconds / 3600:.2f} h) of {self.lines}"
        said += f" ({self.seconds / 3600:.2f} h), left out {amounts_sentence(self.left_out)}"
        if others := {name: count for name, count in self.amounts.items() if name not in USAGE}:
            said += f"; {amounts_sentence(others)}"
        if self.amounts:
            requests, read, written = (self.amounts.get(name, 0.0) for name in USAGE)
            said += f"; {amount(int(requests), 'request')}, {read / 1e6:.3f} M tokens read and {written / 1e6:.3f} M "
            said += f"written, {self.money:.2f} at these prices"
        speed = f", {self.seconds / self.effort.cores:.0f} h of sound per core hour" if self.effort.cores else ""
        return f"{said}; {self.effort}{speed}"
