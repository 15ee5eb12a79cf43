"""Ranks that share a preparation meet in its folder alone: each tells there what it has in hand, and that it lives.

    OUT/work/ranks/00003.json     what rank 3 is at, written anew every few seconds

A rank whose file has not changed for PATIENCE seconds, by the reader's own clock, counts as dead, and others take what
it had in hand. That may be wrong, and two may take the same thing at once: then it is made twice, and comes out the
same. So nothing here has to be exact, no clocks are compared, and no lock can be left behind.
"""

import json
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Self

from tqdm import tqdm

from ..data.storage import Store

RANKS_FOLDER = "work/ranks"
PATIENCE = 60.0
SIGNS_OF_LIFE = 12  # signs of life within that time
LINE = 60.0  # seconds between two lines about progress where there is no terminal


@dataclass
class RankStatus:
    """What a rank tells the others."""

    blocks: list[int] = field(default_factory=list)  # that it has in hand
    lines: int = 0  # of the manifest that it has finished since its start
    clips: int = 0  # that it has kept since then
    beat: int = 0


@dataclass
class _RankSighting:
    told: RankStatus
    since: float
    first: RankStatus  # when this process first looked; of an earlier launch, until it changes
    changed: bool = False  # while this process looked: not left by an earlier launch

    @property
    def new(self) -> tuple[int, int]:
        """Lines and clips since this process first looked: what was finished before, it has counted by the blocks."""
        again = self.told.lines < self.first.lines  # the rank was started anew
        before = RankStatus() if again else self.first
        return self.told.lines - before.lines, self.told.clips - before.clips


class Ranks:
    """A context manager around a rank's work, in which it gives its signs of life."""

    def __init__(self, store: Store, rank: int, count: int, patience: float = PATIENCE) -> None:
        self.rank, self.count = rank, count
        self.mine = RankStatus()
        self._store, self._patience = store, patience
        self._seen: dict[int, _RankSighting] = {}
        self._over, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="beat", daemon=True)
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        self.tell()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._progress:
            self._progress.close()

    def show(self, total: int, done: int) -> None:
        """Shows from now on how far all ranks are with `total` lines, of which `done` were finished before. The lowest
        rank that lives says it, so that a death of the first one does not silence the others."""
        self._look()
        self._progress = Progress(total, done)

    def tell(self) -> None:
        """At once what is in hand."""
        # What stops the work is told by the work itself; a sign of life may fail now and then.
        with self._lock, suppress(OSError):
            self.mine.beat += 1
            self._store.write(_name(self.rank), json.dumps(asdict(self.mine)).encode(), durable=False)

    def elsewhere(self) -> set[int]:
        """The blocks that others, as far as they live, have in hand."""
        return {block for seen in self._living().values() for block in seen.told.blocks}

    def lowest(self) -> bool:
        """Whether no living rank has a lower number."""
        return min(self.living()) == self.rank

    def living(self) -> set[int]:
        return {self.rank, *self._living()}

    def _living(self) -> dict[int, _RankSighting]:
        now = time.monotonic()
        return {rank: seen for rank, seen in self._look().items() if now - seen.since < self._patience}

    def _look(self) -> dict[int, _RankSighting]:
        """What the other ranks of this launch, or ones before it, have told."""
        with self._lock, suppress(OSError):
            for name in self._store.names(f"{RANKS_FOLDER}/"):
                rank = int(name.rpartition("/")[2].partition(".")[0])
                # Of a launch with more ranks something may have been left.
                if rank != self.rank and rank < self.count and (data := self._store.read(name)):
                    told, before = RankStatus(**json.loads(data)), self._seen.get(rank)
                    if before is None or told != before.told:
                        first = told if before is None else before.first
                        self._seen[rank] = _RankSighting(told, time.monotonic(), first, before is not None)
        return dict(self._seen)

    def _beat(self) -> None:
        beats = 0
        while not self._over.wait(self._patience / SIGNS_OF_LIFE):
            self.tell()
            beats += 1
            # Whether it has become the lowest, a rank looks seldom: a hundred of them would keep a bucket busy.
            if self._progress and (self.rank == 0 or (beats % SIGNS_OF_LIFE == 0 and self.lowest())):
                others = [seen.new for seen in self._look().values() if seen.changed]
                lines, clips = (sum(new) for new in zip((self.mine.lines, self.mine.clips), *others, strict=True))
                self._progress.update(lines, clips, 1 + len(others))


class Progress:
    """A bar over all ranks, or now and then a line where there is no terminal."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._before = total, done
        self._start = self._said = time.monotonic()
        self._bar: tqdm[None] | None = None

    def update(self, lines: int, clips: int, ranks: int) -> None:
        """What the ranks have finished since they started."""
        now = time.monotonic()
        seconds = now - self._start
        done = min(self._total, self._before + lines)
        speed = f"{clips / seconds:.1f} clips/s on {ranks} rank{'s' * (ranks > 1)}"
        if self._bar is None:  # of the rank that shows it
            self._bar = tqdm(total=self._total, initial=self._before, unit=" files", disable=None)
        self._bar.set_postfix_str(speed, refresh=False)
        self._bar.update(done - self._bar.n)
        if self._bar.disable and now - self._said >= LINE:
            self._said = now
            left = _format_duration((self._total - done) * seconds / lines) if lines else "unknown"
            print(f"{done} of {self._total} files, {speed}, time left {left}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _name(rank: int) -> str:
    return f"{RANKS_FOLDER}/{rank:05d}.json"
