"""Prepare the files of a manifest, on any number of ranks, which may be killed and restarted at any time.

A rank makes its own manifest blocks, then those that others have not started, and waits until all are finished. The
lowest living rank then merges them into streams. `manifest_blocks.py` and `ranks.py` describe the files.
"""

import json
import os
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from ...models.config import ModelConfig
from ..core.addresses import ADDRESS
from ..core.hardware import choose_device
from ..data.storage import Store, open_store
from ..manifest.manifest import ManifestEntry, read_entries
from ..media.source import Reason
from ..resilience.stop_signal import StoppedError, StopSignal
from .counts import Counts, amounts_sentence
from .encode import (
    EncodedClips,
    EncoderSettings,
    EntryTask,
    Rejection,
    SharedClips,
    check_encoders,
    encode,
    encode_entry,
    share_entry,
)
from .filters import FiltersConfig
from .manifest_blocks import (
    FileInProgress,
    PreparePlan,
    block_is_finished,
    finished_blocks,
    is_started,
    make_plan,
    start_preparation,
    write_block,
)
from .merge import merge_blocks
from .prepare_scenes import PrepareSummary
from .ranks import PATIENCE, Ranks
from .report import REPORT_FILE, write_report
from .worker_pool import TaskEnd, TaskOutput, WorkerPool

POLL = 1.0  # seconds between two looks at the work of other ranks
CROWDED = 8  # with more ranks, each looks less often
MAX_UNREACHABLE = 10  # addresses in a row without an answer: the network or the storage is at fault
STUCK_AFTER = 1800.0  # seconds without a clip after which a file is given up


@dataclass(frozen=True)
class PrepareRank:
    """The rank of this process, the number of ranks, and the device and limits of its work."""

    rank: int = 0
    ranks: int = 1
    device: str = ""  # of the encoders in the main process; empty: in the workers, on the CPU
    patience: float = PATIENCE  # seconds without a heartbeat after which a rank counts as dead
    unreachable: int = MAX_UNREACHABLE  # addresses in a row without an answer after which a rank stops; 0: never
    limit: float = STUCK_AFTER  # seconds without a clip after which a file is given up
    allow_private: bool = False  # http addresses may lead to this machine or its network

    @classmethod
    def from_environment(cls, device: str | None = None) -> Self:
        """Reads the variables of torchrun, deepspeed and launch/slurm/rank.sh, or of srun. Without a `device` this
        rank's GPU is used, if there is one; "cpu" ignores it. Raises ValueError for inconsistent variables or a missing
        device."""
        rank, ranks, local = 0, 1, 0
        for names in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")):
            if names[0] in os.environ:
                rank, ranks, local = _rank_numbers(names)
                break
        if device is None and torch.cuda.is_available():
            device = f"cuda:{local % torch.cuda.device_count()}"
        return cls(rank, ranks, "" if device in (None, "cpu") else str(choose_device(device)))


def _rank_numbers(names: tuple[str, str, str]) -> tuple[int, int, int]:
    """Rank, number of ranks and rank on this machine from the environment."""
    values = {name: os.environ.get(name, "0" if name == names[2] else "") for name in names}
    shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
    try:
        rank, ranks, local = (int(value) for value in values.values())
    except ValueError:
        raise ValueError(f"{shown}: {names[0]} and {names[1]} must be numbers; a launcher sets both") from None
    if not 0 <= rank < ranks:
        raise ValueError(f"{shown}: {names[0]} must be from 0 to {names[1]} - 1; a launcher sets both")
    return rank, ranks, local


def prepare_files(
    out: str,
    model: ModelConfig,
    manifest: Path,
    seed: int,
    workers: int,
    filters: FiltersConfig | None = None,
    place: PrepareRank | None = None,
) -> PrepareSummary:
    """Decode, cut, filter and encode the files of a manifest into `out/audio` and `out/music`, as far as they occur.

    What is left out is listed in `out/rejected.jsonl` and counted in `out/prepare_report.html`. `seed` decides the
    wording of captions that are written from annotations. `out` is a folder, or the address of one in a bucket. The
    result does not depend on the number of ranks and workers, or on interruptions.

    Raises:
        ValueError: the manifest is wrong (before any work), `out` was started with other settings, or nothing was kept.
        OSError: the disk is full or not writable, a bucket or the storage of media fails, memory runs out, or a worker
            process was killed.
        StoppedError: the process was asked to stop. After this or an OSError the same command continues.
    """
    place = place or PrepareRank()
    entries = read_entries(manifest, place.allow_private)
    plan = make_plan(manifest, len(entries), model, filters or FiltersConfig(), seed)
    encoders = EncoderSettings(plan.codec, plan.video, plan.filters, place.device or "cpu")
    store = open_store(out, place.rank)
    try:
        if not is_started(store, plan):
            _check_encoders(encoders, in_worker=not place.device)
            start_preparation(store, plan)
        if not store.has(REPORT_FILE):
            _prepare_blocks(store, plan, entries, encoders, place, workers)
    except OSError as error:
        raise OSError(f"{error}; finished work stays in {store}, and the same command continues from there") from error
    return _summary(store)


def _check_encoders(encoders: EncoderSettings, in_worker: bool) -> None:
    """Check the encoders before anything is written, so that a wrong configuration can be corrected. Encoders of
    workers are loaded in a worker, which then frees the memory. Raises ValueError."""
    if not in_worker:
        list(check_encoders(encoders))
        return
    left = [encoders]
    with WorkerPool(check_encoders, 1) as pool:
        for message in pool.run(lambda: left.pop() if left else None):
            if isinstance(message, TaskEnd) and message.crash:
                raise ChildProcessError(f"loading the encoders killed the process ({message.crash})")


def _prepare_blocks(
    store: Store,
    plan: PreparePlan,
    entries: list[ManifestEntry],
    encoders: EncoderSettings,
    place: PrepareRank,
    workers: int,
) -> None:
    function = share_entry if place.device else encode_entry
    with (
        WorkerPool(function, workers, place.limit) as pool,
        Ranks(store, place.rank, place.ranks, place.patience) as ranks,
        store.scratch() as spool,
        StopSignal() as stop,
    ):
        work = _RankWork(store, plan, entries, encoders, ranks, spool, place.unreachable)
        ranks.show(plan.lines, sum(len(plan.lines_of(number)) for number in work.finished))
        while True:
            for message in pool.run(work.next_task):
                _check(stop, store)
                if message is not None:
                    work.take(message)
            work.write()
            if len(work.finished) == plan.block_count:
                break
            _wait(stop, store, work.poll)
        while not store.has(REPORT_FILE):
            if ranks.is_lowest():
                write_report(store, plan, entries, merge_blocks(store, plan))
                store.clean(ranks.living())
            else:
                _wait(stop, store, work.poll)


def _wait(stop: StopSignal, store: Store, seconds: float) -> None:
    """Wait until it is time to look at the other ranks again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        _check(stop, store)
        time.sleep(0.1)


def _check(stop: StopSignal, store: Store) -> None:
    if stop.requested:
        raise StoppedError(f"asked to stop; finished work stays in {store}, and the same command continues from there")


class _RankWork:
    """The blocks that a rank is working on."""

    def __init__(
        self,
        store: Store,
        plan: PreparePlan,
        entries: list[ManifestEntry],
        encoders: EncoderSettings,
        ranks: Ranks,
        spool: Path,
        unreachable: int,
    ) -> None:
        self.store, self.plan, self.entries, self.encoders = store, plan, entries, encoders
        self.ranks, self.spool = ranks, spool
        self.finished = finished_blocks(store)  # blocks, as far as known
        self._own = iter(range(ranks.rank, plan.block_count, ranks.count))
        self._tasks: deque[EntryTask] = deque()
        self._open: dict[int, dict[int, FileInProgress]] = {}  # by block, then by line
        self._complete: list[int] = []  # blocks waiting to be written
        self._running: set[int] = set()  # lines in a worker
        self._killed: set[int] = set()  # lines whose process was killed once
        self._retries: deque[EntryTask] = deque()  # tasks of these lines
        self._unreachable, self._most_unreachable = 0, unreachable  # in a row
        # An idle rank looks at all others: with many ranks, it looks less often.
        self.poll = POLL * max(1.0, ranks.count / CROWDED)
        self._last_look = -self.poll

    def next_task(self) -> EntryTask | None:
        """The next file; None if no rank has left any, or while a file is retried alone."""
        if self._running & self._killed or (self._retries and self._running):
            return None
        if not self._retries and not self._tasks and (number := self._next_block()) is not None:
            files = {self.entries[i].line: FileInProgress(self.entries[i]) for i in self.plan.lines_of(number)}
            self._open[number] = files
            self._tasks.extend(EntryTask(self.encoders, file.entry, number) for file in files.values())
            self._announce()
        waiting = self._retries or self._tasks
        if not waiting:
            return None
        task = waiting.popleft()
        self._running.add(task.entry.line)
        return task

    def _next_block(self) -> int | None:
        for number in self._own:
            # An idle rank may have made it.
            if number not in self.finished and not block_is_finished(self.store, number):
                return number
            self.finished.add(number)
        if time.monotonic() - self._last_look < self.poll:
            return None
        self._last_look = time.monotonic()
        self.finished |= finished_blocks(self.store)
        left = set(range(self.plan.block_count)) - self.finished - self._open.keys()
        free = sorted(left - self.ranks.taken_blocks()) if left else []
        # From the end, which their own ranks reach last; a different one for each idle rank.
        return free[-1 - self.ranks.rank % len(free)] if free else None

    def take(self, message: TaskOutput[EntryTask] | TaskEnd[EntryTask]) -> None:
        """Take the next clips of a file, or its end. The last file of a block completes the block.

        Raises ConnectionError if too many addresses in a row give no answer.
        """
        task = message.task
        line, files = task.entry.line, self._open[task.block]
        if isinstance(message, TaskOutput):
            value: EncodedClips | Rejection | SharedClips = message.value
            files[line].add(encode(task, value.restored()) if isinstance(value, SharedClips) else value, self.spool)
            return
        self._running.discard(line)
        if message.crash == signal.SIGKILL.name and line not in self._killed:
            files[line].close()
            files[line] = FileInProgress(task.entry)
            self._killed.add(line)
            self._retries.append(task)
            warning = f"the worker process of {task} was killed, usually for lack of memory: it is tried again alone"
            print(f"{warning}; fewer --workers may be faster", file=sys.stderr, flush=True)
            return
        if fault := _process_fault(message, line in self._killed):
            files[line].add(Rejection(line, task.entry.name, *fault), self.spool)
        self._finish_file(task.block, files[line])

    def _finish_file(self, block: int, file: FileInProgress) -> None:
        file.ended = True
        self.ranks.own.lines += 1
        self.ranks.own.clips += file.clips
        self._count_unreachable(file)
        if all(file.ended for file in self._open[block].values()):
            self._complete.append(block)
        if not self._unreachable:
            self.write()

    def _count_unreachable(self, file: FileInProgress) -> None:
        if not any(ADDRESS.match(place) for place in (file.entry.audio, file.entry.video) if place):
            return
        reasons = [rejection.reason for rejection in file.rejections]
        self._unreachable = self._unreachable + 1 if Reason.UNREACHABLE.value in reasons else 0
        if 0 < self._most_unreachable <= self._unreachable:
            raise ConnectionError(
                f"{self._unreachable} addresses in a row gave no answer, the last one: {file.rejections[0].detail} "
                f"(--unreachable 0 leaves out any number of them)"
            )

    def write(self) -> None:
        """Write complete blocks. Not while addresses give no answer, because the files may not be at fault."""
        for number in self._complete:
            files = list(self._open[number].values())
            write_block(self.store, self.plan, number, files)
            for file in files:
                file.close()
            del self._open[number]
            self.finished.add(number)
        if self._complete:
            self._complete = []
            self._announce()

    def _announce(self) -> None:
        self.ranks.own.blocks = sorted(self._open)
        self.ranks.announce()


def _process_fault(end: TaskEnd[EntryTask], killed: bool) -> tuple[str, str] | None:
    """Reason and detail if a file is left out because of what happened to its process."""
    if end.stuck:
        return Reason.STUCK.value, "gave no clip within the time limit (--limit)"
    if end.crash and killed:
        return Reason.UNDECODABLE.value, f"decoding it killed its process twice, the second time alone ({end.crash})"
    return (Reason.UNDECODABLE.value, f"decoding it killed the process ({end.crash})") if end.crash else None


def _summary(store: Store) -> PrepareSummary:
    """The summary of a finished preparation. Raises ValueError if nothing was kept."""
    report = json.loads(store.read(REPORT_FILE) or b"{}")
    counts = Counts(report["counts"])
    rejected = Counts({"all": counts["rejected files"]})
    rejected.add(Counts({"all": counts["rejected clips"]}))
    summary = PrepareSummary(counts["clips"], sum(counts["seconds"].values()), rejected["all"])
    if not summary.clips:
        first = report["first rejection"]
        raise ValueError(
            f"no clip could be kept: {amounts_sentence(summary.rejected)}; the first is line {first['line']}: "
            f"{first['reason']} ({first['detail']})"
        )
    return summary
