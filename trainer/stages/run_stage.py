"""Run a stage of curation: it reads a manifest and writes one, whole or not at all, and says what it left out and why.

    OUT                      the new manifest
    OUT.left_out.jsonl       a line for each line or part of one that is left out: line, sound, reason, detail
    OUT.html                 how much was left out for which reason, and how the measured values lie
    OUT.work                 the plan, the forecast and the finished blocks, while the stage runs
    OUT.answers              of a stage that asks a model: what it has answered

It runs on the same makers as the last step of a preparation, and may be killed and started again like it.
"""

import json
import os
import socket
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...models import strict
from ..core.english import amounts_sentence
from ..core.files import atomic_output, hash_json, json_text, refuse_existing, remove
from ..data.storage import FolderStore
from ..manifest.forecast import Forecast, forecast
from ..manifest.manifest import ManifestEntry, raw_line, read_entry
from ..manifest.manifest_index import BlockTask, ManifestIndex, index_manifest, read_block_lines
from ..prepare.decode import Rejection
from ..prepare.decoders import LineEnd, LineRestart, decode_lines
from ..resilience.stop_signal import StoppedError, StopSignal
from ..workers.cluster import connected
from ..workers.driver import drive
from ..workers.effort import Effort
from ..workers.pool import Pool
from ..workers.process_pool import ProcessPool
from ..workers.progress import Progress
from ..workers.unanswered import AnsweredBlocks
from .answers import AnsweringDecoders
from .caption_statistics import CaptionStatistics
from .duplicates import near_duplicates
from .stage import Asker, LineResults, Stage, StageResult, StageSummary, StageTask, StageWorkers
from .stage_page import write_stage_page

BLOCKS = 64, 256  # lines per block at most, and blocks at least
ASKING_BLOCKS = 256, 16  # of a stage that asks a model: many questions at a time, and each answer is saved
PLAN_FILE, FORECAST_FILE = "plan.json", "forecast.json"
DUPLICATE = "near duplicate"


@dataclass(frozen=True)
class _MadeLine:
    """What became of a line, as it is stored."""

    line: int
    new: list[str]
    left_out: list[Rejection]
    seconds: float
    kept_seconds: float
    values: dict[str, float]
    fingerprint: str
    audio: str
    effort: Effort
    amounts: dict[str, float]


@dataclass(frozen=True)
class _MadeBlock:
    """A block that its maker has made."""

    lines: list[_MadeLine]
    maker: str  # host and process
    answers: list[str]  # of its addresses, in order: empty, or why one gave none


class _StageMaker:
    """Makes the blocks of a stage."""

    def __init__(self, stage: Stage, manifest: Path, out: Path, workers: StageWorkers) -> None:
        self._judge, self._manifest, self._folder = stage.judge, manifest, out.parent
        self._workers = workers
        self._asker = stage.asking.asker(_beside(out, ".answers"), workers.count) if stage.asking else None
        self._tools: tuple[AnsweringDecoders, Asker] | None = None

    def __call__(self, task: BlockTask) -> Iterator[_MadeBlock]:
        """Raises as `run_stage`."""
        if self._tools is None:
            decoders = AnsweringDecoders(self._judge, self._workers.limit, self._workers.unreachable).__enter__()
            self._tools = decoders, self._asker() if self._asker else _judge_lines
        texts = dict(read_block_lines(self._manifest, task))
        entries = {
            line: replace(read_entry(self._manifest, line, text), allow_private=self._workers.allow_private)
            for line, text in texts.items()
        }
        decoders, results = self._tools
        decoders.answers.clear()
        found = results(entries.values(), decoders)
        lines = [self._made(entries[line], text, *found[line]) for line, text in texts.items()]
        yield _MadeBlock(lines, f"{socket.gethostname()}-{os.getpid()}", list(decoders.answers))

    def _made(self, entry: ManifestEntry, text: bytes, result: StageResult, effort: Effort) -> _MadeLine:
        raw, new = raw_line(self._manifest, entry, text, self._folder), []
        for changes in result.changes:
            changed = {key: value for key, value in (raw | changes).items() if value is not None}
            new.append(json.dumps(changed, ensure_ascii=False))
        return _MadeLine(
            entry.line, new, result.left_out, result.seconds, result.kept_seconds, result.values, result.fingerprint,
            entry.name, effort, result.amounts,
        )  # fmt: skip


def _judge_lines(entries: Iterable[ManifestEntry], decoders: Pool[StageTask]) -> LineResults:
    """What a stage that asks nobody makes of lines: what its judge says."""
    found: LineResults = {}
    for event in decode_lines([StageTask(entry) for entry in entries], decoders):
        line, name = event.entry.line, event.entry.name
        if isinstance(event, LineRestart):
            found.pop(line, None)
        elif not isinstance(event, LineEnd):
            if event.value[0] is not None:
                found[line] = event.value
        elif event.fault:
            found[line] = StageResult(left_out=[Rejection(line, name, *event.fault)]), Effort()
    return found


def run_stage(stage: Stage, manifest: Path, out: Path, workers: StageWorkers) -> StageSummary:
    """Write `out`, a manifest, from another one. The same command continues what was stopped.

    Raises:
        ValueError: the manifest is wrong, `out` exists or was begun with other settings, the forecast is above what
            the stage may cost, a model cannot be asked, or nothing is left.
        OSError: the disk is full, the storage of media fails, too many addresses in a row give no answer, or memory
            runs out.
        StoppedError: the process was asked to stop. After this or an OSError the same command continues.
    """
    if out.exists():  # a kill after the last rename leaves this
        remove(work_folder(out))
    refuse_existing(out)
    index = index_manifest(manifest, *(ASKING_BLOCKS if stage.asking else BLOCKS))
    store = FolderStore(work_folder(out))
    before = _start(store, stage, index, out)
    try:
        before = _make_blocks(store, stage, index, out, workers, before)
    except OSError as error:
        raise OSError(f"{error}; finished work stays in {store}, and the same command continues from there") from error
    summary = _join(store, stage, index, out, before)
    remove(store.path)
    return summary


def work_folder(out: Path) -> Path:
    """Where the plan and the finished blocks of a stage lie until `out` is there."""
    return _beside(out, ".work")


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(out.name + ending)


def _start(store: FolderStore, stage: Stage, index: ManifestIndex, out: Path) -> Forecast:
    """Write the plan and the forecast, unless the same plan is there, and say the forecast. Raises ValueError."""
    plan = {"stage": stage.name, "settings": stage.settings, "manifest": index.hash, "block lines": index.block_lines}
    begun = store.read(PLAN_FILE)
    if begun is not None and (old := strict.parse_json(begun)) != plan:
        where, was, now = strict.difference("", old, plan)
        raise ValueError(
            f"{out} was begun with {where} {was!r}, this command has {now!r}; keep the former, or remove {store}"
        )
    if begun is not None and (saved := store.read(FORECAST_FILE)):
        found: Forecast = strict.parse(Forecast, strict.parse_json(saved))
        found = replace(found, money=stage.price.money(found.read, found.written))  # prices may have changed
    elif stage.asking:
        found = forecast(index.path, index.lines, stage.asking.asked, stage.price, stage.asking.longest)
    else:
        found = forecast(index.path, index.lines)
    found.say(out, stage.name)
    if stage.at_most is not None and found.money > stage.at_most:
        asked = "nothing was asked" if begun is None else "nothing more was asked"
        raise ValueError(f"--at-most {stage.at_most:g}: the forecast is {found.money:.2f}; {asked}")
    if begun is None:
        store.write(FORECAST_FILE, json_text(asdict(found)).encode())
        store.write(PLAN_FILE, json_text(plan).encode())
    return found


def _make_blocks(
    store: FolderStore, stage: Stage, index: ManifestIndex, out: Path, workers: StageWorkers, before: Forecast
) -> Forecast:
    """Returns the forecast, with the effort that the first block promises."""
    finished = {number for number in range(len(index)) if store.has(_block_name(number))}
    tasks = (index.task(number) for number in range(len(index)) if number not in finished)
    maker = _StageMaker(stage, index.path.absolute(), out.absolute(), workers)

    def check() -> None:
        if stop.requested:
            raise StoppedError(f"asked to stop; finished work stays in {store}, and the same command continues")

    def save(block: tuple[int, list[_MadeLine]]) -> None:
        nonlocal before
        number, made = block
        value = {"lines": [asdict(line) for line in made]}
        store.write(_block_name(number), json_text(value | {"checksum": hash_json(value)}).encode())
        if before.effort is None:
            taken = sum((line.effort for line in made), Effort())
            before = replace(before, effort=taken * (index.lines / len(made)))
            store.write(FORECAST_FILE, json_text(asdict(before)).encode())
            before.say(out, stage.name)

    with (
        connected(workers.address, workers.count) if workers.address else nullcontext(),
        _pool(maker, stage, workers) as pool,
        StopSignal() as stop,
        Progress(index.lines, len(finished) * index.block_lines) as progress,
    ):
        blocks = AnsweredBlocks(workers.unreachable, save)
        for task, made in drive(pool, tasks, check):
            blocks.add((task.number, made.lines), made.maker, made.answers)
            progress.add(len(made.lines), sum(len(line.new) for line in made.lines))
        blocks.write_rest()
    return before


def _pool(maker: _StageMaker, stage: Stage, workers: StageWorkers) -> Any:
    count = stage.asking.makers(workers.count) if stage.asking else workers.count
    if not workers.address:
        return ProcessPool([maker] * count)
    from ..workers.ray_pool import RayPool, gpu_share, resources

    # Each actor has networks of its own on its part of a GPU; nodes without one would judge by the CPU alone.
    share = gpu_share() if stage.gpus else 0.0

    def actors() -> int:
        there = resources("CPU", with_gpu=share > 0)
        return min(there, count) if stage.asking else there

    return RayPool(maker, actors, {"num_cpus": 1, "num_gpus": share})


def _block_name(number: int) -> str:
    return f"blocks/{number:06d}.json"


def _read_blocks(store: FolderStore, count: int) -> Iterator[_MadeLine]:
    """All lines. Raises ValueError if the record of a block is damaged."""
    for number in range(count):
        name = _block_name(number)
        try:
            value = strict.parse_json(store.read(name) or b"")
            whole = value.pop("checksum") == hash_json(value)
            lines = []
            for line in value["lines"]:
                left_out = [Rejection(**row) for row in line.pop("left_out")]
                lines.append(_MadeLine(**line | {"left_out": left_out, "effort": Effort(**line["effort"])}))
        except (ValueError, KeyError, AttributeError, TypeError):
            whole = False
        if not whole:
            again = "remove it and run the same command again, which makes it again"
            raise ValueError(f"{store}/{name} is damaged; {again}")
        yield from lines


def _originals(store: FolderStore, count: int) -> dict[int, int]:
    """The line that each near duplicate resembles."""
    numbers, fingerprints = array("q"), list[str]()
    for made in _read_blocks(store, count):
        if made.fingerprint:
            numbers.append(made.line)
            fingerprints.append(made.fingerprint)
    return {numbers[i]: numbers[j] for i, j in near_duplicates(fingerprints).items()}


@dataclass
class _Totals:
    kept: int = 0
    seconds: float = 0.0
    kept_seconds: float = 0.0
    effort: Effort = field(default_factory=Effort)
    first: Rejection | None = None
    reasons: Counter[str] = field(default_factory=Counter)
    amounts: Counter[str] = field(default_factory=Counter)
    values: dict[str, Counter[float]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, made: _MadeLine) -> None:
        self.kept += len(made.new)
        self.seconds += made.seconds
        self.kept_seconds += made.kept_seconds
        self.effort += made.effort
        self.first = self.first or next(iter(made.left_out), None)
        self.reasons.update(row.reason for row in made.left_out)
        self.amounts.update(made.amounts)
        for name, value in made.values.items():
            self.values[name][float(f"{value:.2g}")] += 1  # few numbers, for any number of lines


def _join(store: FolderStore, stage: Stage, index: ManifestIndex, out: Path, before: Forecast) -> StageSummary:
    """Write the new manifest, and before it what goes with it. Raises ValueError if nothing is left."""
    totals, originals = _Totals(), _originals(store, len(index))
    statistics = CaptionStatistics() if stage.asking else None
    with atomic_output(out) as new, atomic_output(_beside(out, ".left_out.jsonl"), replace=True) as left_out:
        with new.open("w", encoding="utf-8") as lines, left_out.open("w", encoding="utf-8") as others:
            for made in _read_blocks(store, len(index)):
                if made.line in originals:
                    row = Rejection(made.line, made.audio, DUPLICATE, f"resembles line {originals[made.line]}")
                    made = replace(made, new=[], kept_seconds=0.0, left_out=[row])
                totals.add(made)
                if statistics:
                    statistics.add(made.new, made.seconds)
                lines.writelines(line + "\n" for line in made.new)
                others.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in made.left_out)
        if totals.first and not totals.kept:
            first = totals.first
            raise ValueError(
                f"no line is left: {amounts_sentence(totals.reasons)}; the first is line {first.line}: {first.reason} "
                f"({first.detail})"
            )
        read, written = totals.amounts["tokens read"], totals.amounts["tokens written"]
        summary = StageSummary(
            index.lines, totals.seconds, totals.kept, totals.kept_seconds, dict(totals.reasons), totals.effort,
            dict(totals.amounts), stage.price.money(read, written),
        )  # fmt: skip
        page = _beside(out, ".html")
        write_stage_page(page, stage.name, summary, before, totals.values, stage.thresholds, statistics)
    return summary
