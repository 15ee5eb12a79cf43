"""No rank waits for ever: one that is stopped, dead or elsewhere is named, and every rank leaves.

A thread of each rank tells rank 0, through a small store of its own, where the rank is; rank 0 compares. A rank that
makes no progress for longer than its phase's bound (`timeouts` of the configuration) ends the run: rank 0 writes a
verdict, which all ranks print and leave with. When it is rank 0 that falls silent, the others say so themselves. All
stop when one does, so a rank also tells whether it waits in a collective operation: who does not is the cause.

The thread that talks may be stuck as well (a stopped rank 0 answers nobody, and torch's store waits for it without a
bound); so another one watches the clock. Both run while the main thread waits in a collective operation.
"""

import json
import os
import socket
import sys
import threading
import time
from dataclasses import astuple, dataclass, replace
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from ..core.cli import ExitCode, exit_code_of
from ..core.config import TimeoutsConfig
from ..core.credentials import redacted
from .rank_location import whereabouts
from .stop_signal import StoppedError

SHARE = 0.1  # of the shortest bound: the time between two signs of life
ANSWER = 5.0  # seconds at least for the store to answer, whatever the bounds: on a busy machine it is slow
LONGEST = 2.0  # seconds between them, whatever the bounds: what a rank has to say is heard soon


@dataclass(frozen=True)
class Place:
    """Where a rank is."""

    phase: str = "start-up"
    step: int = 0
    failed: str = ""  # the error that ended its work, if it is not one that explains itself
    code: int = ExitCode.FAILED  # of that error

    def __str__(self) -> str:
        return self.phase if self.phase in ("start-up", "end") else f"{self.phase} {self.step}"


@dataclass
class Seen:
    """What is known of a rank, and since when by this process's own clock."""

    place: Place
    moved: float
    alive: float
    beat: int = -1
    line: str = ""  # of this project that its main thread stands in; it moves in a loop that never ends, too
    waits: bool = False  # in a collective operation

    def __str__(self) -> str:
        return f"{'waiting in ' if self.waits else 'in '}{self.place}{self.line and f' ({self.line})'}"


class Watchdog:
    """A context manager around a rank's whole work."""

    def __init__(self, bounds: TimeoutsConfig) -> None:
        self.bounds = bounds
        self.place = Place()
        self.rank, self.ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.pause = min(LONGEST, SHARE * min(bounds.start, bounds.first_step, bounds.step, bounds.save))
        self.nodes: list[str] = []  # each rank's, where there are several
        self.seen = {self.rank: Seen(self.place, time.monotonic(), time.monotonic())}
        self.store: dist.TCPStore | None = None
        self.talker: threading.Thread | None = None
        self.verdict: tuple[ExitCode, str] | None = None
        self.started = False
        self.leaving = False  # by an error of this rank, which its main thread prints
        self.reaper: threading.Timer | None = None
        self.paused = 0.0  # seconds for which this process was stopped itself
        self.over, self.judged, self.once = threading.Event(), threading.Event(), threading.Lock()

    def __enter__(self) -> Self:
        self.started = True
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def connect(self, rank: int, ranks: int) -> None:
        """Once the process group is there. All ranks call this."""
        if ranks == 1:
            return
        host, port = os.environ["MASTER_ADDR"], 0
        short = timedelta(seconds=max(10 * self.pause, ANSWER))
        if rank == 0:
            self.store = dist.TCPStore(host, 0, None, True, timeout=short, wait_for_workers=False)
            port = self.store.port
        told: list[Any] = [None] * ranks
        dist.all_gather_object(told, (port, os.environ.get("SLURMD_NODENAME") or socket.gethostname()))
        if rank != 0:
            self.store = dist.TCPStore(host, told[0][0], None, False, timeout=short, wait_for_workers=False)
        nodes = [node for _, node in told]
        self.nodes, now = nodes if len(set(nodes)) > 1 else [], time.monotonic()
        others = [other for other in (range(ranks) if rank == 0 else (0,)) if other != rank]
        self.seen = self.seen | {other: Seen(Place(), now, now) for other in others}
        self.talker = threading.Thread(target=self._talk, name="heartbeat", daemon=True)
        self.talker.start()

    def enter(self, phase: str, step: int) -> None:
        """The main thread begins with something."""
        self.place = Place(phase, step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.failing(kind, error, trace)
        if error is None or isinstance(error, StoppedError):  # on all ranks
            self.leaving = error is not None
            self.place = Place("end")
            if self.store is not None:
                dist.barrier()  # else rank 0 takes the store away while others still look for a sign of life
        elif self.place.failed and self.judged.wait(self._bound(self.place) + 10 * self.pause):
            self._leave()
        self.over.set()
        if self.talker is not None:  # Python ends with SIGABRT while a thread is in a call of torch's store
            self.talker.join(max(2 * self.pause, ANSWER))
        self._reap(error)

    def failing(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tells the others of an error. To be pushed onto an ExitStack whose contexts may wait for what still writes or
        reads, for which the others need not wait."""
        if self.leaving or self.place.failed or isinstance(error, StoppedError) or not isinstance(error, Exception):
            return
        if isinstance(error, (ValueError, OSError, FloatingPointError, torch.AcceleratorError)):
            self._announce(error, f"rank {self.rank}: {error}")
        elif isinstance(error, RuntimeError) and self.store is not None:
            # Often the consequence of another rank's end: who is silent now is the cause.
            self.place = replace(self.place, failed=_named(error), code=exit_code_of(error))
        else:
            self._announce(error, f"rank {self.rank}: {_named(error)}")

    def _reap(self, error: BaseException | None) -> None:
        """Contexts, and Python at its end, wait for every thread, and one of them may read or write for ever."""
        if error is None or not self.started or self.reaper:
            return

        def end() -> None:
            if not self.over.is_set():  # else the main thread has said it
                print(f"\nerror: {redacted(str(error))}", file=sys.stderr, flush=True)
            os._exit(exit_code_of(error))

        self.reaper = threading.Timer(self.bounds.step, end)
        self.reaper.daemon = True
        self.reaper.start()

    def _announce(self, error: Exception, sentence: str) -> None:
        """The others hear of an error that explains itself, rather than of a silence."""
        self.leaving = True
        self._reap(error)
        if self.store is None:
            return
        teller = threading.Thread(target=self._tell, args=(exit_code_of(error), sentence), daemon=True)
        teller.start()
        teller.join(5 * self.pause)
        self._heard_by_all()

    # The thread that talks.

    def _talk(self) -> None:
        """Tells where this rank is, and hears where the others are."""
        assert self.store is not None
        beat, others = 0, [rank for rank in self.seen if rank != self.rank]
        while not self.over.wait(self.pause):
            beat += 1
            try:
                self.store.set(f"rank/{self.rank}", json.dumps([beat, astuple(self.place), *self._line()]))
                if self.store.check(["verdict"]):
                    self._hear(self.store.get("verdict"))
                there = [rank for rank in others if self.store.check([f"rank/{rank}"])]
                for rank in there:
                    self._note(rank, *json.loads(self.store.get(f"rank/{rank}")))
            except Exception:  # rank 0 is gone or silent; the other thread knows how long it has been
                continue

    def _line(self) -> tuple[str, bool]:
        """`whereabouts`, once nothing has moved here for half the bound: a run that goes on is not looked into."""
        own = self.seen[self.rank]
        return whereabouts() if time.monotonic() - own.moved > self._bound(self.place) / 2 else ("", False)

    def _note(self, rank: int, beat: int, place: list[Any], line: str, waits: bool) -> None:
        seen, now = self.seen[rank], time.monotonic()
        seen.line, seen.waits = line, waits
        if beat != seen.beat:
            seen.beat, seen.alive = beat, now
        if Place(*place) != seen.place:
            seen.place, seen.moved = Place(*place), now

    def _tell(self, code: ExitCode, sentence: str) -> None:
        assert self.store is not None
        try:
            first = self.store.compare_set("verdict", "", json.dumps([int(code), redacted(sentence)]))
            self._hear(first)
        except Exception:
            return

    def _hear(self, verdict: bytes) -> None:
        assert self.store is not None
        code, sentence = json.loads(verdict)
        try:
            self.store.set(f"heard/{self.rank}", "")  # before this process leaves
        finally:
            self.verdict = ExitCode(code), sentence
            self.judged.set()

    def _heard_by_all(self) -> None:
        """The store is rank 0's: it stays until every other rank that gave a sign of life has read the verdict."""
        if self.rank != 0 or self.store is None:
            return
        begin = time.monotonic()
        live = [rank for rank, s in self.seen.items() if rank != 0 and begin - s.alive <= self._patience(s) / 2]
        try:
            while live and time.monotonic() - begin < 10 * self.pause:
                if self.store.check([f"heard/{rank}" for rank in live]):
                    return
                time.sleep(self.pause / 10)
        except Exception:  # of the store: whoever has not read it sees that this rank is silent
            return

    # The thread that watches the clock.

    def _watch(self) -> None:
        last = time.monotonic()
        while not self.over.wait(self.pause / 2):
            now = time.monotonic()
            if now - last > self._bound(self.place) / 2:  # this process itself was stopped: what it saw is old
                self.paused = now - last
                for seen in self.seen.values():
                    seen.alive = seen.moved = now
            last, own = now, self.seen[self.rank]
            own.alive = now
            if self.place != own.place:
                own.place, own.moved = self.place, now
            if self.verdict is None:
                self._judge(now)
            if self.verdict is not None and not self.leaving:
                self._leave()

    def _judge(self, now: float) -> None:
        """Sets a verdict where somebody has made no progress for too long."""
        silent = [rank for rank, s in self.seen.items() if now - s.alive > self._patience(s)]
        if self.rank == 0 or self.store is None:
            # A rank may wait for another that is in a longer phase, so the longest bound counts.
            bound = max(self._bound(s.place) for s in self.seen.values())
            late = any(now - s.moved > bound for s in self.seen.values())
        else:  # rank 0 judges the others, as long as it is there
            bound, late = 0.0, False
        failed = [rank for rank, s in self.seen.items() if s.place.failed]
        nobody = self.rank == 0 and len(failed) == self.ranks  # is left to wait for
        if not (late or silent or nobody):
            return
        # The others stop where the silent rank stopped, at about the same time: half the bound tells them apart.
        silent = silent or [rank for rank, s in self.seen.items() if now - s.alive > bound / 2 and rank != self.rank]
        self.seen[self.rank].line, self.seen[self.rank].waits = self._line()
        code = ExitCode(self.seen[failed[0]].place.code) if failed and not silent else ExitCode.HUNG
        self.verdict = code, self._sentence(silent, failed, bound)
        if self.rank == 0 and self.store is not None:
            threading.Thread(target=self._tell, args=self.verdict, daemon=True).start()
        self.judged.set()

    def _sentence(self, silent: list[int], failed: list[int], bound: float) -> str:
        """Names the ranks that are the cause: silent ones before failed ones before those that are elsewhere."""
        if self.store is None and self.ranks > 1:
            return f"rank {self.rank} has waited {self.bounds.start:g} s in start-up for the other ranks"
        end = "all ranks leave; start again with --resume"
        if self.paused:
            end = f"this process itself was stopped for {self.paused:.0f} s before; {end}"
        if silent:
            seen = self.seen[silent[0]]
            return (
                f"{self._ranks(silent)} stopped or dead: no sign of life for {time.monotonic() - seen.alive:.0f} s, "
                f"last heard of in {seen.place}; {end}"
            )
        if failed:
            return (
                f"{self._ranks(failed)} at fault, in {self.seen[failed[0]].place}: {self.seen[failed[0]].place.failed}"
            )
        return f"no progress for {bound:g} s: {self._places()}; {end}"

    def _places(self) -> str:
        """Where every rank is: first who keeps others waiting, then the smaller groups, which are the odd ones."""
        groups: dict[tuple[bool, str], list[int]] = {}
        for rank, seen in self.seen.items():
            groups.setdefault((seen.waits, str(seen)), []).append(rank)
        ordered = sorted(groups.items(), key=lambda group: (group[0][0], len(group[1])))
        return ", ".join(f"{self._ranks(ranks)} {where}" for (_, where), ranks in ordered)

    def _ranks(self, ranks: list[int]) -> str:
        names = [f"{rank} (on {self.nodes[rank]})" if self.nodes else str(rank) for rank in ranks[:8]]
        if len(ranks) == 1:
            return f"rank {names[0]} is"
        return f"ranks {', '.join(names)}{' and more' if len(ranks) > 8 else ''} are"

    def _patience(self, seen: Seen) -> float:
        """How long a rank may be silent: what was heard last of it is old, and it has to be about where this one is."""
        return max((place.step, self._bound(place)) for place in (seen.place, self.place))[1]

    def _bound(self, place: Place) -> float:
        bounds = {"start-up": self.bounds.start, "first step": self.bounds.first_step, "step": self.bounds.step}
        return bounds.get(place.phase, self.bounds.save)

    def _leave(self) -> None:
        """At once: the main thread may be in a call that never returns."""
        assert self.verdict is not None
        self.once.acquire()  # of two threads one alone
        self._heard_by_all()
        code, sentence = self.verdict
        print(f"\nerror: {redacted(sentence)}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(code)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
