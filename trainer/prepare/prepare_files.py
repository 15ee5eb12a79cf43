"""Prepare the files of a manifest: a driver hands out its blocks, makers make them, and anything may be killed.

The driver alone writes records of finished blocks, so there is one truth of what is left. `make_block.py` says how a
block is made, `manifest_blocks.py` what lies in the folder.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...models.config import AnyModelConfig
from ..core.english import amounts_sentence
from ..core.hardware import choose_device
from ..data.storage import Store, open_store
from ..manifest.forecast import forecast
from ..manifest.manifest_index import ManifestIndex, index_manifest
from ..resilience.stop_signal import StoppedError, StopSignal
from ..workers.cluster import connected
from ..workers.driver import drive
from ..workers.pool import Pool
from ..workers.process_pool import ProcessPool
from ..workers.progress import Progress
from ..workers.unanswered import AnsweredBlocks
from .cost_file import Cost, read_cost, write_cost
from .counts import Counts
from .decode import EncoderSettings, decode_entry
from .encode import check_encoders
from .filters import FiltersConfig
from .make_block import PER_DEVICE, BlockJob, BlockMaker
from .manifest_blocks import (
    BLOCK_LINES,
    MIN_BLOCKS,
    BlockRecord,
    finished_blocks,
    is_started,
    make_plan,
    start_preparation,
    write_record,
)
from .merge import merge_blocks
from .prepare_scenes import PrepareSummary
from .report import REPORT_FILE, write_report


@dataclass(frozen=True)
class Workers:
    """Who makes the blocks."""

    count: int = 1  # processes that decode, on this machine; with Ray, the cluster's cores decide
    devices: tuple[str, ...] = ()  # of the encoders; none: the CPU, with a maker per worker
    address: str = ""  # of a Ray cluster; empty: processes of this machine
    limit: float = 1800.0  # seconds without a clip after which a file is given up
    unreachable: int = 10  # addresses in a row without an answer after which the work stops; 0: never
    allow_private: bool = False  # http addresses may lead to this machine or its network


def choose_devices(device: str | None, address: str) -> tuple[str, ...]:
    """All GPUs of this machine, or of a cluster; with a `device` that one, and none for "cpu".

    Raises ValueError for a missing device.
    """
    import torch

    if device == "cpu":
        return ()
    if address:
        return (device or "cuda",)  # where there is no GPU in the cluster, `_pool` takes the CPU
    if device:
        return (str(choose_device(device)),)
    return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))


def prepare_files(
    out: str,
    model: AnyModelConfig,
    manifest: Path,
    seed: int,
    workers: Workers | int,
    filters: FiltersConfig | None = None,
) -> PrepareSummary:
    """Decode, cut, filter and encode the files of a manifest into `out/audio` and `out/music`, as far as they occur.

    What is left out is listed in `out/rejected.jsonl` and counted in `out/prepare_report.html`. `seed` decides the
    wording of captions that are written from annotations. `out` is a folder, or the address of one in a bucket. The
    result does not depend on the workers, or on interruptions.

    Raises:
        ValueError: the manifest is wrong (before any work), `out` was started with other settings, or nothing was kept.
        OSError: the disk is full or not writable, a bucket or the storage of media fails, memory runs out, or a worker
            process was killed.
        StoppedError: the process was asked to stop. After this or an OSError the same command continues.
    """
    who = Workers(workers) if isinstance(workers, int) else workers
    index = index_manifest(manifest, BLOCK_LINES, MIN_BLOCKS)
    plan = make_plan(index, model, filters or FiltersConfig(), seed)
    store = open_store(out)
    job = BlockJob(
        plan, out, manifest.absolute(), EncoderSettings(plan.codec, plan.video, plan.filters), decode_entry, 1,
        limit=who.limit, unreachable=who.unreachable, allow_private=who.allow_private,
    )  # fmt: skip
    started = is_started(store, plan)
    cost = read_cost(store) if started else None
    if cost is None:
        cost = Cost(forecast(manifest, index.lines))
        cost.forecast.say(out, "files")
    try:
        if not store.has(REPORT_FILE):
            with connected(who.address, who.count) if who.address else nullcontext():
                if not started:
                    _check_encoders(job, who)
                    start_preparation(store, plan)
                cost = _make_blocks(store, index, job, who, cost)
            write_report(store, index, plan, merge_blocks(store, plan), who.allow_private)
        store.clean()
    except OSError as error:
        raise OSError(f"{error}; finished work stays in {store}, and the same command continues from there") from error
    return replace(_summary(store), cost=str(cost))


def _pool(who: Workers, job: BlockJob, function: Callable[[BlockJob], Any]) -> AbstractContextManager[Pool[Any]]:
    """Makers of what `function` gives for the job with a device."""
    if who.address:
        from .cluster_makers import cluster_pool

        return cluster_pool(who.devices, job, function)
    devices = who.devices * PER_DEVICE or ("cpu",) * who.count
    share = max(1, who.count // len(devices))
    jobs = [replace(job, encoders=replace(job.encoders, device=device), decoders=share) for device in devices]
    return ProcessPool([function(one) for one in jobs])


class _CheckEncoders:
    def __init__(self, job: BlockJob) -> None:
        self._encoders = job.encoders

    def __call__(self, task: int) -> Iterator[bool]:
        for _ in check_encoders(self._encoders):
            pass
        yield True


def _check_encoders(job: BlockJob, who: Workers) -> None:
    """Check the encoders in a worker before anything is written, so that a wrong configuration can be corrected. Raises
    ValueError."""
    one = replace(who, count=min(1, who.count), devices=who.devices[:1])
    with _pool(one, job, _CheckEncoders) as pool:
        list(drive(pool, iter([0]), lambda: None))


def _make_blocks(store: Store, index: ManifestIndex, job: BlockJob, who: Workers, cost: Cost) -> Cost:
    """Returns the cost with that of the blocks."""
    finished = finished_blocks(store)
    tasks = (index.task(number) for number in range(len(index)) if number not in finished)
    records = AnsweredBlocks[tuple[int, BlockRecord]](job.unreachable, lambda block: write_record(store, *block))
    with (
        _pool(who, job, BlockMaker) as pool,
        StopSignal() as stop,
        Progress(index.lines, sum(job.plan.lines_in(number) for number in finished)) as progress,
    ):
        for task, made in drive(pool, tasks, lambda: _check(stop, store)):
            progress.add(made.lines, made.clips)
            records.add((task.number, made.record), made.maker, made.answers)
            first, cost = not cost.forecast.effort, cost.after(made.effort, made.lines / index.lines)
            write_cost(store, cost)
            if first:
                cost.forecast.say(job.out, "files")
        records.write_rest()
    return cost


def _check(stop: StopSignal, store: Store) -> None:
    if stop.requested:
        raise StoppedError(f"asked to stop; finished work stays in {store}, and the same command continues from there")


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
