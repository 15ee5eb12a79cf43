"""What the work on a manifest will cost: said before it begins, and beside the true cost after it."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core.addresses import ADDRESS
from ..core.english import amount
from ..media.header import header_seconds
from ..workers.effort import Effort
from ..workers.pool import TaskOutput
from ..workers.process_pool import ProcessPool
from .manifest import ManifestEntry, iter_entries
from .prices import Price, Usage

SAMPLE = 64  # files whose header is read where a manifest does not say how long they are
PATIENCE = 20.0  # seconds for a header


@dataclass(frozen=True)
class Forecast:
    """What is known before the work begins. `seconds`: of sound; `effort`: None before the first block."""

    lines: int
    seconds: float
    guessed: bool  # lengths of a sample of the files stand for those of others
    questions: int = 0
    read: float = 0.0  # tokens
    written: float = 0.0
    money: float = 0.0
    effort: Effort | None = None

    def __str__(self) -> str:
        hours = f"{'about ' if self.guessed else ''}{self.seconds / 3600:.2f} h of sound" if self.seconds else ""
        said = f"{amount(self.lines, 'line')}, {hours or 'of unknown length'}"
        if self.questions:
            said += f"; at most {amount(self.questions, 'question')}: about {self.read / 1e6:.3f} M tokens to read and "
            said += f"{self.written / 1e6:.3f} M to write, {self.money:.2f} at these prices"
        return f"{said}; about {self.effort}" if self.effort else said

    def say(self, out: object, stage: str) -> None:
        """Print it, for the stage that writes `out`."""
        print(f"{out}: {stage}: {self}", file=sys.stderr, flush=True)


def forecast(
    manifest: Path,
    lines: int,
    ask: Callable[[ManifestEntry], Usage] | None = None,
    price: Price | None = None,
    longest: float = 0.0,
) -> Forecast:
    """Read the whole manifest of `lines` lines, and the headers of a few files. `ask`: what is asked about each line,
    at a price. A file that does not say how long it is counts as `longest` seconds in what is asked.

    Raises ValueError as `read_entries`.
    """
    price = price or Price()
    seconds, heard, total = 0.0, 0.0, Usage()
    unknown = unknown_asked = 0
    sample, step = list[ManifestEntry](), -(-lines // SAMPLE)
    for entry in iter_entries(manifest):
        asked = ask(entry) if ask else Usage()
        total.add(asked)
        if entry.end is not None:
            seconds += entry.end - entry.start
            heard += asked.requests * (entry.end - entry.start)
        else:
            sample += [entry] if unknown % step == 0 else []
            unknown, unknown_asked = unknown + 1, unknown_asked + asked.requests
    lengths = list(_lengths(sample))
    mean = sum(lengths) / len(lengths) if lengths else 0.0
    silent = len(sample) - len(lengths)  # files that do not say it
    heard += (sum(lengths) + longest * silent) / max(1, len(sample)) * unknown_asked
    read = total.read + price.audio_tokens * heard
    money = price.money(read, total.written)
    whole = seconds + mean * unknown if mean or not unknown else 0.0
    return Forecast(lines, whole, unknown > 0, total.requests, read, total.written, money)


def _lengths(entries: list[ManifestEntry]) -> Iterator[float]:
    """Seconds of those files that say so; in a process, because a damaged one may bring its decoder down."""
    files = [(entry.audio, entry.start) for entry in entries if not ADDRESS.match(entry.audio)]
    if not files:
        return
    with ProcessPool([_length], PATIENCE, "spawn") as pool:
        tasks = iter(files)
        for message in pool.run(lambda: next(tasks, None)):
            if isinstance(message, TaskOutput):
                yield message.value


def _length(task: tuple[str, float]) -> Iterator[float]:
    place, start = task
    try:
        seconds = header_seconds(Path(place)) - start
    except Exception:  # it is named when it is decoded
        return
    if seconds > 0:
        yield seconds
