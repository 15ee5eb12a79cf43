"""The files of a manifest to shard folders: any number of ranks, which may be killed at any time and begin again.

A rank makes the blocks that are its own by their number, then what others have not begun, and waits until all are
there; the lowest rank that lives writes what makes streams of them. `blocks.py` and `ranks.py` say what lies where.
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
from ..manifest.manifest import ManifestEntry, read_manifest
from ..media.source import Reason
from ..resilience.stop_signal import StoppedError, StopSignal
from .blocks import (
    FileInProgress,
    PreparePlan,
    block_is_finished,
    finished_blocks,
    is_started,
    make_plan,
    start_preparation,
    write_block,
)
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
from .merge import merge_blocks
from .prepare_scenes import PrepareSummary
from .ranks import PATIENCE, Ranks
from .report import REPORT_FILE, write_report
from .worker_pool import TaskEnd, TaskOutput, WorkerPool

POLL = 1.0  # seconds between two looks for what others have left
CROWDED = 8  # ranks, above which they look less often
MAX_UNREACHABLE = 10  # addresses in a row that give no answer: the network or the storage is away
STUCK_AFTER = 1800.0  # seconds in which a file gives no clip, after which it is given up


@dataclass(frozen=True)
class PrepareRank:
    """Which rank of how many this is, and where its encoders compute."""

    rank: int = 0
    ranks: int = 1
    device: str = ""  # a device of the main process; empty: in the workers, on the CPU
    patience: float = PATIENCE  # seconds without a sign of life after which a rank counts as dead
    unreachable: int = MAX_UNREACHABLE  # addresses in a row without an answer at which a rank stops; 0: never
    limit: float = STUCK_AFTER  # seconds without a clip after which a file is given up

    @classmethod
    def here(cls, device: str | None = None) -> Self:
        """As torchrun, deepspeed and launch/slurm/rank.sh say it, or srun itself. Without a `device` this rank's GPU is
        taken, where there is one; "cpu" leaves it alone. Raises ValueError where they make no sense, or it
        is not here."""
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
    given = {name: os.environ.get(name, "0" if name == names[2] else "") for name in names}
    said = ", ".join(f"{name}={value!r}" for name, value in given.items())
    try:
        rank, ranks, local = (int(value) for value in given.values())
    except ValueError:
        raise ValueError(f"{said}: {names[0]} and {names[1]} must be numbers; a launcher sets both") from None
    if not 0 <= rank < ranks:
        raise ValueError(f"{said}: {names[0]} must be from 0 to {names[1]} - 1; a launcher sets both")
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
    """Decodes, cuts, filters and encodes the files of a manifest into `out/audio` and `out/music`, where they occur.

    What is left out is listed in `out/rejected.jsonl` and counted in `out/prepare_report.html`. `seed` settles the
    wording of captions that are written from annotations. `out` is a folder, or the address of one in a bucket. The
    result depends on neither the number of ranks and workers nor on how often they were killed and begun again.

    Raises:
        ValueError: the manifest is wrong (before any work), `out` was begun with something else, or nothing was kept.
        OSError: the disk is full or not writable, a bucket or what media lie on fails, memory runs out, or a worker
            process was ended.
        StoppedError: the process was asked to stop. After this and an OSError the same command goes on.
    """
    entries = read_manifest(manifest)
    plan = make_plan(manifest, len(entries), model, filters or FiltersConfig(), seed)
    place = place or PrepareRank()
    encoders = EncoderSettings(plan.codec, plan.video, plan.filters, place.device or "cpu")
    store = open_store(out, place.rank)
    try:
        if not is_started(store, plan):
            _check_encoders(encoders, in_worker=not place.device)
            start_preparation(store, plan)
        if not store.has(REPORT_FILE):
            _prepare_blocks(store, plan, entries, encoders, place, workers)
    except OSError as error:
        raise OSError(f"{error}; what is finished stays in {store}, and the same command goes on from there") from error
    return _summary(store)


def _check_encoders(encoders: EncoderSettings, in_worker: bool) -> None:
    """Before anything is written, so that a slip in the configuration can be mended. What encodes in workers is loaded
    in one, which gives its memory back. Raises ValueError."""
    if not in_worker:
        list(check_encoders(encoders))
        return
    left = [encoders]
    with WorkerPool(check_encoders, 1) as pool:
        for message in pool.run(lambda: left.pop() if left else None):
            if isinstance(message, TaskEnd) and message.crash:
                raise ChildProcessError(f"loading the encoders ended the process by {message.crash}")


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
            if len(work.finished) == plan.blocks:
                break
            _wait(stop, store, work.poll)
        while not store.has(REPORT_FILE):
            if ranks.lowest():
                write_report(store, plan, entries, merge_blocks(store, plan))
                store.clean(ranks.living())
            else:
                _wait(stop, store, work.poll)


def _wait(stop: StopSignal, store: Store, seconds: float) -> None:
    """Until it is time to look again what others have left."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        _check(stop, store)
        time.sleep(0.1)


def _check(stop: StopSignal, store: Store) -> None:
    if stop.asked:
        raise StoppedError(f"asked to stop; what is finished stays in {store}, and the same command goes on from there")


class _RankWork:
    """The blocks that a rank has in hand."""

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
        self.finished = finished_blocks(store)  # blocks, as far as this rank knows
        self._own = iter(range(ranks.rank, plan.blocks, ranks.count))
        self._tasks: deque[EntryTask] = deque()
        self._open: dict[int, dict[int, FileInProgress]] = {}  # by block, then by line
        self._complete: list[int] = []  # blocks that wait to be written
        self._under_way: set[int] = set()  # lines
        self._killed: set[int] = set()  # lines whose process was killed once
        self._again: deque[EntryTask] = deque()  # of these
        self._unreachable, self._most_unreachable = 0, unreachable  # in a row
        # Each that has nothing to do looks at all others: the more there are, the less often.
        self.poll = POLL * max(1.0, ranks.count / CROWDED)
        self._looked = -self.poll

    def next_task(self) -> EntryTask | None:
        """The next file; None while there is nothing that nobody has in hand, or a file is tried by itself."""
        if self._under_way & self._killed or (self._again and self._under_way):
            return None
        if not self._again and not self._tasks and (number := self._next_block()) is not None:
            files = {self.entries[i].line: FileInProgress(self.entries[i]) for i in self.plan.lines_of(number)}
            self._open[number] = files
            self._tasks.extend(EntryTask(self.encoders, file.entry, number) for file in files.values())
            self._tell()
        waiting = self._again or self._tasks
        if not waiting:
            return None
        task = waiting.popleft()
        self._under_way.add(task.entry.line)
        return task

    def _next_block(self) -> int | None:
        for number in self._own:
            # Another rank that had nothing left may have made it.
            if number not in self.finished and not block_is_finished(self.store, number):
                return number
            self.finished.add(number)
        if time.monotonic() - self._looked < self.poll:
            return None
        self._looked = time.monotonic()
        self.finished |= finished_blocks(self.store)
        left = set(range(self.plan.blocks)) - self.finished - self._open.keys()
        free = sorted(left - self.ranks.elsewhere()) if left else []
        # From the end, where whose own they are comes last, and not all ranks the same.
        return free[-1 - self.ranks.rank % len(free)] if free else None

    def take(self, message: TaskOutput[EntryTask] | TaskEnd[EntryTask]) -> None:
        """Some more of a file, or its end; with the last of a block the block is written.

        Raises ConnectionError where too many addresses in a row give no answer.
        """
        task = message.task
        line, files = task.entry.line, self._open[task.block]
        if isinstance(message, TaskOutput):
            value: EncodedClips | Rejection | SharedClips = message.value
            files[line].add(encode(task, value.restored()) if isinstance(value, SharedClips) else value, self.spool)
            return
        self._under_way.discard(line)
        if message.crash == signal.SIGKILL.name and line not in self._killed:
            files[line].close()
            files[line] = FileInProgress(task.entry)
            self._killed.add(line)
            self._again.append(task)
            warning = (
                f"the worker process of {task} was killed, most often for want of memory: it is tried again by itself"
            )
            print(f"{warning}; fewer --workers may be faster", file=sys.stderr, flush=True)
            return
        if fault := _process_fault(message, line in self._killed):
            files[line].add(Rejection(line, task.entry.name, *fault), self.spool)
        self._end(task.block, files[line])

    def _end(self, block: int, file: FileInProgress) -> None:
        file.ended = True
        self.ranks.mine.lines += 1
        self.ranks.mine.clips += file.clips
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
        """The blocks that are complete. While addresses give no answer they wait: the fault may not be the files'."""
        for number in self._complete:
            files = list(self._open[number].values())
            write_block(self.store, self.plan, number, files)
            for file in files:
                file.close()
            del self._open[number]
            self.finished.add(number)
        if self._complete:
            self._complete = []
            self._tell()

    def _tell(self) -> None:
        self.ranks.mine.blocks = sorted(self._open)
        self.ranks.tell()


def _process_fault(end: TaskEnd[EntryTask], killed: bool) -> tuple[str, str] | None:
    """Why a file is left out whose process has not come to its end."""
    if end.stuck:
        return Reason.STUCK.value, "gave no clip in the longest time that a file may take (--limit)"
    if end.crash and killed:
        return Reason.UNDECODABLE.value, f"decoding it ended its process twice, by {end.crash} when it was alone"
    return (Reason.UNDECODABLE.value, f"decoding it ended the process by {end.crash}") if end.crash else None


def _summary(store: Store) -> PrepareSummary:
    """Of a finished preparation. Raises ValueError where nothing was kept."""
    report = json.loads(store.read(REPORT_FILE) or b"{}")
    counts = Counts(report["counts"])
    rejected = Counts({"all": counts["rejected files"]})
    rejected.add(Counts({"all": counts["rejected clips"]}))
    summary = PrepareSummary(counts["clips"], sum(counts["seconds"].values()), rejected["all"])
    if not summary.kept:
        first = report["first rejection"]
        raise ValueError(
            f"no clip could be kept: {amounts_sentence(summary.rejected)}; the first is line {first['line']}: "
            f"{first['reason']} ({first['detail']})"
        )
    return summary
