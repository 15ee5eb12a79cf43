"""Detect a rank that dies or hangs: it is named, and every rank exits. No rank waits forever.

A thread of each rank reports the rank's status to rank 0, through its own small store, and rank 0 compares. A rank
that makes no progress for longer than its phase's bound (`timeouts` of the configuration) ends the run: rank 0 writes a
verdict, which all ranks print and leave with. When rank 0 itself falls silent, the others notice. All ranks stop when
one does, so a rank also reports whether it waits in a collective operation: the one that does not is the cause.

The reporting thread may block too (a stopped rank 0 does not answer, and torch's store waits for it without a bound),
so a second thread watches the clock, and whether the processes of the other ranks on this machine are there: one that
was killed is noticed at once. Both run while the main thread waits in a collective operation. Neither runs while
a native call keeps Python's lock: a process outside watches for that (`monitor.py`).
"""

import os
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
from .monitor import Monitor
from .neighbours import Neighbours
from .rank_location import rank_location
from .signed_store import SignedStore
from .stop_signal import StoppedError

HEARTBEAT_SHARE = 0.1  # of the shortest bound: the time between two signs of life
LONGEST_PAUSE = 2.0  # seconds between them, whatever the bounds, so that reports arrive soon
GRACE = 3.0  # such pauses in which the last words of a process that has ended arrive
LEAVING = "all ranks leave; start again with --resume"
STORE_TIMEOUT = 5.0  # seconds at least for the store to answer, whatever the bounds: a busy machine is slow


@dataclass(frozen=True)
class RankStatus:
    """The phase and step of a rank, and the error that it failed with."""

    phase: str = "start-up"
    step: int = 0
    failed: str = ""  # the error that ended its work, unless the error explains itself
    code: int = ExitCode.FAILED  # of that error

    def __str__(self) -> str:
        return self.phase if self.phase in ("start-up", "end") else f"{self.phase} {self.step}"


@dataclass
class RankRecord:
    """The state of a rank as this process knows it. All times are those of its own clock."""

    status: RankStatus
    moved: float  # when the status changed last
    alive: float  # when the last sign of life came
    beat: int = -1
    line: str = ""  # the line of this project that its main thread is in; it changes in an endless loop, too
    waits: bool = False  # in a collective operation

    def __str__(self) -> str:
        return f"{'waiting in ' if self.waits else 'in '}{self.status}{self.line and f' ({self.line})'}"


class Watchdog:
    """A context manager around all the work of a rank."""

    def __init__(self, bounds: TimeoutsConfig) -> None:
        self.bounds = bounds
        self.status = RankStatus()
        self.rank, self.ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        shortest = min(bounds.start, bounds.first_step, bounds.step, bounds.save)
        self.pause = min(LONGEST_PAUSE, HEARTBEAT_SHARE * shortest)
        self.nodes: list[str] = []  # each rank's node, if there are several nodes
        self.records = {self.rank: RankRecord(self.status, time.monotonic(), time.monotonic())}
        self.store: SignedStore | None = None
        self.reporter: threading.Thread | None = None
        self.verdict: tuple[ExitCode, str] | None = None
        self.monitor: Monitor | None = None
        self.leaving = False  # by an error of this rank, which its main thread prints
        self.killer: threading.Timer | None = None
        self.paused = 0.0  # seconds for which this process was stopped itself
        self.neighbours = Neighbours(self.rank)
        self.reported: set[int] = set()  # ranks whose process has ended, as others say
        self.over, self.judged, self.left = threading.Event(), threading.Event(), threading.Lock()

    def __enter__(self) -> Self:
        self.monitor = Monitor(self.rank, self.ranks)
        self._report_to_monitor()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def connect(self, rank: int, ranks: int) -> None:
        """Starts the reports, once there is a process group. All ranks call this."""
        if ranks == 1:
            return
        timeout = timedelta(seconds=max(10 * self.pause, STORE_TIMEOUT))
        self.store, places = SignedStore.connect(rank, ranks, timeout)
        nodes, now = [place.node for place in places], time.monotonic()
        self.nodes = nodes if len(set(nodes)) > 1 else []
        self.neighbours = Neighbours(rank, places)
        others = [other for other in (range(ranks) if rank == 0 else (0,)) if other != rank]
        self.records = self.records | {other: RankRecord(RankStatus(), now, now) for other in others}
        self.reporter = threading.Thread(target=self._report, name="heartbeat", daemon=True)
        self.reporter.start()

    def enter(self, phase: str, step: int) -> None:
        """The main thread enters a phase."""
        self.status = RankStatus(phase, step)
        self._report_to_monitor()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.failing(kind, error, trace)
        if error is None or isinstance(error, StoppedError):  # on all ranks
            self.leaving = error is not None
            self.status = RankStatus("end")
            if self.store is not None:
                dist.barrier()  # otherwise rank 0 removes the store while others still look for a sign of life
        elif self.status.failed and self.judged.wait(self._bound(self.status) + 10 * self.pause):
            self._leave()
        self.over.set()
        if self.reporter is not None:  # Python ends with SIGABRT while a thread is in a call of torch's store
            self.reporter.join(max(2 * self.pause, STORE_TIMEOUT))
        self._kill_after_timeout(error)
        if self.monitor is not None:
            self.monitor.close()

    def failing(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Reports an error to the other ranks. Push it onto an ExitStack whose contexts may wait for a thread that
        reads or writes: the other ranks need not wait for that."""
        if self.leaving or self.status.failed or isinstance(error, StoppedError) or not isinstance(error, Exception):
            return
        if isinstance(error, (ValueError, OSError, FloatingPointError, torch.AcceleratorError)):
            self._announce(error, f"rank {self.rank}: {error}")
        elif isinstance(error, RuntimeError) and self.store is not None:
            # Often the consequence of another rank's end: the rank that is silent now is the cause.
            self.status = replace(self.status, failed=_summary(error), code=exit_code_of(error))
        else:
            self._announce(error, f"rank {self.rank}: {_summary(error)}")

    def _kill_after_timeout(self, error: BaseException | None) -> None:
        """Contexts, and Python at its end, wait for every thread, and one of them may read or write forever."""
        if error is None or self.monitor is None or self.killer:
            return

        def end() -> None:
            if not self.over.is_set():  # otherwise the main thread has printed it
                print(f"\nerror: {redacted(str(error))}", file=sys.stderr, flush=True)
            os._exit(exit_code_of(error))

        self.killer = threading.Timer(self.bounds.step, end)
        self.killer.daemon = True
        self.killer.start()

    def _announce(self, error: Exception, sentence: str) -> None:
        """Sends the other ranks an error that explains itself, so that they do not see a silence."""
        self.leaving = True
        self._kill_after_timeout(error)
        if self.store is None:
            return
        sender = threading.Thread(target=self._send_verdict, args=(exit_code_of(error), sentence), daemon=True)
        sender.start()
        sender.join(5 * self.pause)
        self._wait_for_readers()

    # The thread that reports.

    def _report(self) -> None:
        """Reports this rank's status, and reads that of the others."""
        assert self.store is not None
        beat, others = 0, [rank for rank in self.records if rank != self.rank]
        while not self.over.wait(self.pause):
            beat += 1
            try:
                report = [beat, astuple(self.status), *self._location(), self._ended(time.monotonic())]
                self.store.set(f"rank/{self.rank}", report)
                if verdict := self.store.get("verdict"):
                    self._receive_verdict(*verdict)
                for rank in others:
                    if report := self.store.get(f"rank/{rank}"):
                        self._record(rank, *report)
            except Exception:  # rank 0 is dead or silent; the other thread knows for how long
                continue

    def _location(self) -> tuple[str, bool]:
        """`rank_location`, once this rank has not moved for half its bound. A run that makes progress is not
        examined."""
        own = self.records[self.rank]
        return rank_location() if time.monotonic() - own.moved > self._bound(self.status) / 2 else ("", False)

    def _record(self, rank: int, beat: int, status: list[Any], line: str, waits: bool, ended: list[int]) -> None:
        record, now = self.records[rank], time.monotonic()
        if beat < record.beat:  # an old report, sent again by somebody else
            return
        record.line, record.waits = line, waits
        self.reported.update(ended)
        if beat != record.beat:
            record.beat, record.alive = beat, now
        if RankStatus(*status) != record.status:
            record.status, record.moved = RankStatus(*status), now

    def _send_verdict(self, code: ExitCode, sentence: str) -> None:
        assert self.store is not None
        try:
            self._receive_verdict(*self.store.set_first("verdict", [int(code), redacted(sentence)]))
        except Exception:
            return

    def _receive_verdict(self, code: int, sentence: str) -> None:
        assert self.store is not None
        if code == ExitCode.DONE:  # only a rank's own work ends it as done
            return
        try:
            self.store.set(f"read/{self.rank}", True)  # before this process leaves
        finally:
            self.verdict = ExitCode(code), sentence
            self.judged.set()

    def _wait_for_readers(self) -> None:
        """Rank 0 holds the store, so it stays until every other living rank has read the verdict."""
        if self.rank != 0 or self.store is None:
            return
        begin = time.monotonic()
        heard = {rank for rank, r in self.records.items() if rank != 0 and begin - r.alive <= self._patience(r) / 2}
        living = heard.difference(self.reported, self.neighbours.ended)
        try:
            while living and time.monotonic() - begin < 10 * self.pause:
                if self.store.has_all(f"read/{rank}" for rank in living):
                    return
                time.sleep(self.pause / 10)
        except Exception:  # of the store: a rank that has not read the verdict notices that this one is silent
            return

    # The thread that watches the clock.

    def _watch(self) -> None:
        last, unwatched = time.monotonic(), False
        while not self.over.wait(self.pause / 2):
            now = time.monotonic()
            if now - last > self._bound(self.status) / 2:  # this process itself was stopped: its records are old
                self.paused = now - last
                for record in self.records.values():
                    record.alive = record.moved = now
            self._report_to_monitor()
            if not unwatched and self.monitor and self.monitor.has_ended() and not self.over.is_set():
                unwatched = True
                print(
                    f"rank {self.rank}: its monitor has ended; a native call that hangs is not noticed", file=sys.stderr
                )
            last, own = now, self.records[self.rank]
            own.alive = now
            if self.status != own.status:
                own.status, own.moved = self.status, now
            self.neighbours.look(now)
            if self.verdict is None:
                self._judge(now)
            if self.verdict is not None and not self.leaving:
                self._leave()

    def _report_to_monitor(self) -> None:
        if self.monitor is not None:
            self.monitor.report(str(self.status), self._bound(self.status))

    def _ended(self, now: float) -> list[int]:
        """The ranks of this machine whose process has ended without a word, which would have come by now."""
        return self.neighbours.ended_before(now - GRACE * self.pause)

    def _judge(self, now: float) -> None:
        """Sets a verdict if a rank's process has ended, or a rank has made no progress for too long."""
        ended = sorted(self.reported.union(self._ended(now)))
        if ended and self.status.phase != "end" and (self.rank == 0 or 0 in ended):
            status = self.records[ended[0]].status
            how = "dead: its process has ended" if len(ended) == 1 else "dead: their processes have ended"
            self._set_verdict(ExitCode.HUNG, f"{self._ranks(ended)} {how}, last heard of in {status}; {LEAVING}")
            return
        silent = [rank for rank, r in self.records.items() if now - r.alive > self._patience(r)]
        if self.rank == 0 or self.store is None:
            # A rank may wait for another that is in a longer phase, so the longest bound counts.
            bound = max(self._bound(r.status) for r in self.records.values())
            late = any(now - r.moved > bound for r in self.records.values())
        else:  # rank 0 judges the others, as long as it lives
            bound, late = 0.0, False
        failed = [rank for rank, r in self.records.items() if r.status.failed]
        all_failed = self.rank == 0 and len(failed) == self.ranks
        if not (late or silent or all_failed):
            return
        # The others stop at about the time when the silent rank stopped, so half the bound tells them apart.
        silent = silent or [rank for rank, r in self.records.items() if now - r.alive > bound / 2 and rank != self.rank]
        self.records[self.rank].line, self.records[self.rank].waits = self._location()
        code = ExitCode(self.records[failed[0]].status.code) if failed and not silent else ExitCode.HUNG
        self._set_verdict(code, self._sentence(silent, failed, bound))

    def _set_verdict(self, code: ExitCode, sentence: str) -> None:
        self.verdict = code, sentence
        if self.rank == 0 and self.store is not None:
            threading.Thread(target=self._send_verdict, args=self.verdict, daemon=True).start()
        self.judged.set()

    def _sentence(self, silent: list[int], failed: list[int], bound: float) -> str:
        """Names the ranks that are the cause: silent ones before failed ones before those in another phase."""
        if self.store is None and self.ranks > 1:
            return f"rank {self.rank} has waited {self.bounds.start:g} s in start-up for the other ranks"
        end = LEAVING
        if self.paused:
            end = f"this process itself was stopped for {self.paused:.0f} s before; {end}"
        if silent:
            record = self.records[silent[0]]
            seconds = time.monotonic() - record.alive
            return (
                f"{self._ranks(silent)} stopped, stuck or dead: no sign of life for {seconds:.0f} s, "
                f"last heard of in {record.status}; {end}"
            )
        if failed:
            status = self.records[failed[0]].status
            return f"{self._ranks(failed)} at fault, in {status}: {status.failed}"
        return f"no progress for {bound:g} s: {self._groups()}; {end}"

    def _groups(self) -> str:
        """The status of every rank: first the ranks that others wait for, then smaller groups before larger ones."""
        groups: dict[tuple[bool, str], list[int]] = {}
        for rank, record in self.records.items():
            groups.setdefault((record.waits, str(record)), []).append(rank)
        ordered = sorted(groups.items(), key=lambda group: (group[0][0], len(group[1])))
        return ", ".join(f"{self._ranks(ranks)} {status}" for (_, status), ranks in ordered)

    def _ranks(self, ranks: list[int]) -> str:
        names = [f"{rank} (on {self.nodes[rank]})" if self.nodes else str(rank) for rank in ranks[:8]]
        if len(ranks) == 1:
            return f"rank {names[0]} is"
        return f"ranks {', '.join(names)}{' and more' if len(ranks) > 8 else ''} are"

    def _patience(self, record: RankRecord) -> float:
        """The time that a rank may be silent. Its last report is old, and it must be about where this rank is."""
        return max((status.step, self._bound(status)) for status in (record.status, self.status))[1]

    def _bound(self, status: RankStatus) -> float:
        bounds = {"start-up": self.bounds.start, "first step": self.bounds.first_step, "step": self.bounds.step}
        return bounds.get(status.phase, self.bounds.save)

    def _leave(self) -> None:
        """Ends the process at once: the main thread may be in a call that never returns."""
        assert self.verdict is not None
        self.left.acquire()  # only one of two threads
        self._wait_for_readers()
        code, sentence = self.verdict
        print(f"\nerror: {redacted(sentence)}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(code)


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
