"""Coordinate the ranks of a preparation through its folder: each announces its manifest blocks, and that it is alive.

    OUT/work/ranks/00003.json     the status of rank 3, written every few seconds

A rank whose file has not changed for PATIENCE seconds of the reader's clock counts as dead, and others take its blocks.
If that is wrong, or two take the same block, it is made twice with the same result. So nothing here must be exact, no
clocks are compared, and no lock can be left behind.
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

from ...models import strict
from ..core.english import amount
from ..data.storage import Store

RANKS_FOLDER = "work/ranks"
PATIENCE = 60.0
HEARTBEATS = 12  # within that time
LINE = 60.0  # seconds between two lines of progress without a terminal


@dataclass
class RankHeartbeat:
    """The status that a rank announces to the others."""

    blocks: list[int] = field(default_factory=list)  # in progress
    lines: int = 0  # of the manifest, finished since the rank started
    clips: int = 0  # kept since then
    heartbeat: int = 0


@dataclass
class _RankSighting:
    status: RankHeartbeat
    since: float
    first: RankHeartbeat  # at the first look of this process; may be left from an earlier launch
    changed: bool = False  # since the first look: not left from an earlier launch

    @property
    def new(self) -> tuple[int, int]:
        """Lines and clips since the first look. Earlier ones are already counted by finished blocks."""
        restarted = self.status.lines < self.first.lines
        before = RankHeartbeat() if restarted else self.first
        return self.status.lines - before.lines, self.status.clips - before.clips


class Ranks:
    """A context manager around the work of a rank, which sends heartbeats meanwhile."""

    def __init__(self, store: Store, rank: int, count: int, patience: float = PATIENCE) -> None:
        self.rank, self.count = rank, count
        self.own = RankHeartbeat()
        self._store, self._patience = store, patience
        self._seen: dict[int, _RankSighting] = {}
        self._over, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._send_heartbeats, name="heartbeat", daemon=True)
        self._progress: PreparationProgress | None = None

    def __enter__(self) -> Self:
        self.announce()
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
        """Show the progress of all ranks with `total` lines, of which `done` are finished already. The lowest living
        rank shows it, so there is progress even if rank 0 dies."""
        self._look()
        self._progress = PreparationProgress(total, done)

    def announce(self) -> None:
        """Write the status of this rank now."""
        # A heartbeat may fail now and then; a lasting fault also stops the work itself.
        with self._lock, suppress(OSError):
            self.own.heartbeat += 1
            self._store.write(_name(self.rank), json.dumps(asdict(self.own)).encode(), durable=False)

    def taken_blocks(self) -> set[int]:
        """The blocks in progress on other living ranks."""
        return {block for seen in self._living().values() for block in seen.status.blocks}

    def is_lowest(self) -> bool:
        """Whether no living rank has a lower number."""
        return min(self.living()) == self.rank

    def living(self) -> set[int]:
        return {self.rank, *self._living()}

    def _living(self) -> dict[int, _RankSighting]:
        now = time.monotonic()
        return {rank: seen for rank, seen in self._look().items() if now - seen.since < self._patience}

    def _look(self) -> dict[int, _RankSighting]:
        """Read the status of the other ranks, of this launch or an earlier one."""
        with self._lock, suppress(OSError):
            for name in self._store.names(f"{RANKS_FOLDER}/"):
                rank = int(name.rpartition("/")[2].partition(".")[0])
                # An earlier launch may have had more ranks.
                if rank != self.rank and rank < self.count and (data := self._store.read(name)):
                    status, before = RankHeartbeat(**strict.parse_json(data)), self._seen.get(rank)
                    if before is None or status != before.status:
                        first = status if before is None else before.first
                        self._seen[rank] = _RankSighting(status, time.monotonic(), first, before is not None)
        return dict(self._seen)

    def _send_heartbeats(self) -> None:
        beats = 0
        while not self._over.wait(self._patience / HEARTBEATS):
            self.announce()
            beats += 1
            # A rank seldom checks whether it is the lowest now: a hundred ranks would keep a bucket busy.
            if self._progress and (self.rank == 0 or (beats % HEARTBEATS == 0 and self.is_lowest())):
                others = [seen.new for seen in self._look().values() if seen.changed]
                lines, clips = (sum(new) for new in zip((self.own.lines, self.own.clips), *others, strict=True))
                self._progress.update(lines, clips, 1 + len(others))


class PreparationProgress:
    """A progress bar for all ranks; without a terminal, a line now and then."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._before = total, done
        self._start = self._last_line = time.monotonic()
        self._bar: tqdm[None] | None = None

    def update(self, lines: int, clips: int, ranks: int) -> None:
        """Show what the ranks have finished since they started."""
        now = time.monotonic()
        seconds = now - self._start
        done = min(self._total, self._before + lines)
        speed = f"{clips / seconds:.1f} clips/s on {amount(ranks, 'rank')}"
        if self._bar is None:  # only on the rank that shows it
            self._bar = tqdm(total=self._total, initial=self._before, unit=" files", disable=None)
        self._bar.set_postfix_str(speed, refresh=False)
        self._bar.update(done - self._bar.n)
        if self._bar.disable and now - self._last_line >= LINE:
            self._last_line = now
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
