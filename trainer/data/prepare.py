"""Scenes or files to shard folders: the process pool, the folder that appears only when complete, the summary."""

import json
import shutil
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from ...models.config import ModelConfig
from . import scenes, synth
from .encode import Encoders, EntryTask, Outcome, Rejection, SceneTask, encode_entry, encode_scenes, start_worker
from .manifest import read_manifest
from .record import DOMAINS
from .shards import ShardWriter, partial_sibling, refuse_existing

BLOCK = 64  # scenes a task; part of the result, since a batch decides how its sums are ordered
AHEAD = 4  # tasks a worker that may wait or be finished but not written

Task = TypeVar("Task")


@dataclass(frozen=True)
class Summary:
    """What a run of preparation left: clips kept of each domain, their seconds together, and what was left out."""

    kept: dict[str, int]
    seconds: float
    rejections: list[Rejection]

    def __str__(self) -> str:
        rejected = _reasons(self.rejections) or "nothing"
        return f"kept {_counts(self.kept)} clips ({self.seconds:.1f} s of sound), rejected {rejected}"


def prepare_scenes(out: Path, model: ModelConfig, clips: int, seed: int, music_share: float, workers: int) -> Summary:
    """Renders `clips` procedural scenes, `music_share` of them music, into `out/audio` and `out/music`.

    The result depends on neither the number of workers nor their speed.

    Raises:
        ValueError: `out` exists, a number is out of range, or the model is not made for the scenes' sound and pictures.
        OSError: the disk is full or not writable.
    """
    if clips < 1 or not 0 <= music_share <= 1 or seed < 0:
        raise ValueError(
            f"clips {clips} must be at least 1, music share {music_share} between 0 and 1, seed {seed} 0 or more"
        )
    _check_scene_model(model)
    music = round(clips * music_share)
    encoders = Encoders(model.codec, model.video)
    tasks = [
        SceneTask(encoders, domain, seed, first, min(first + BLOCK, count))
        for domain, count in zip(DOMAINS, (clips - music, music), strict=True)
        for first in range(0, count, BLOCK)
    ]
    with _published(out) as folder, closing(_in_order(encode_scenes, tasks, workers)) as outcomes:
        return _write(folder, model, outcomes, clips, "clips")


def prepare_files(out: Path, model: ModelConfig, manifest: Path, seed: int, workers: int) -> Summary:
    """Decodes, cuts and encodes the files of a manifest into `out/audio` and `out/music`, as far as they occur.

    Files and clips that give nothing are listed in `out/rejected.jsonl`. `seed` settles the wording of the captions
    that are written from annotations. The result depends on neither the number of workers nor their speed.

    Raises:
        ValueError: `out` exists, the manifest is wrong (before any work), or not one clip could be kept.
        OSError: the disk is full or not writable.
    """
    refuse_existing(out)
    entries = read_manifest(manifest)
    encoders = Encoders(model.codec, model.video)
    tasks = (EntryTask(encoders, entry, seed) for entry in entries)
    with _published(out) as folder, closing(_in_order(encode_entry, tasks, workers)) as outcomes:
        summary = _write(folder, model, outcomes, len(entries), "files")
        lines = [json.dumps(asdict(rejection)) + "\n" for rejection in summary.rejections]
        (folder / "rejected.jsonl").write_text("".join(lines))
    return summary


def _check_scene_model(model: ModelConfig) -> None:
    codec, video = model.codec, model.video
    found = (codec.sample_rate, codec.samples, codec.audio_channels, video.size)
    made = (scenes.SAMPLE_RATE, scenes.SAMPLES, 1, synth.SIZE)
    if found != made:
        names = ("Hz", "samples a clip", "channel(s)", "pixels a side")
        as_text = [", ".join(f"{value} {name}" for value, name in zip(v, names, strict=True)) for v in (found, made)]
        raise ValueError(f"the configuration wants {as_text[0]}; scenes have {as_text[1]}: use configs/tiny.json")


def _write(folder: Path, model: ModelConfig, outcomes: Iterable[Outcome], total: int, unit: str) -> Summary:
    kept: Counter[str] = Counter()
    rejections: list[Rejection] = []
    seconds = 0.0
    with ExitStack() as stack, tqdm(total=total, unit=f" {unit}", disable=None) as bar:
        writers: dict[str, ShardWriter] = {}
        for outcome in outcomes:
            for record in outcome.records:
                if record.domain not in writers:
                    target = ShardWriter(folder / record.domain, model.codec, model.text, model.video)
                    writers[record.domain] = stack.enter_context(target)
                writers[record.domain].write(record)
                kept[record.domain] += 1
                seconds += record.seconds
            rejections += outcome.rejections
            bar.update(1 if unit == "files" else len(outcome.records))
    if not kept:
        first = rejections[0]
        raise ValueError(
            f"no clip could be kept: {_reasons(rejections)}; "
            f"the first is line {first.line}: {first.reason} ({first.detail})"
        )
    return Summary(dict(kept), seconds, rejections)


def _reasons(rejections: list[Rejection]) -> str:
    return _counts(Counter(rejection.reason for rejection in rejections))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


@contextmanager
def _published(out: Path) -> Iterator[Path]:
    """A folder to work in that gets the name `out` when the body has come to its end, and vanishes otherwise."""
    refuse_existing(out)
    partial = partial_sibling(out)
    partial.mkdir(parents=True)
    try:
        yield partial
        refuse_existing(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _in_order(function: Callable[[Task], Outcome], tasks: Iterable[Task], workers: int) -> Generator[Outcome]:
    """The outcomes of tasks in the order of the tasks, worked on by processes, a bounded number ahead.

    Processes are spawned: a forked copy of a process in which torch has run threads can hang.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, must be at least 1")
    pending: deque[tuple[Task, Future[Outcome]]] = deque()
    with ProcessPoolExecutor(workers, get_context("spawn"), start_worker) as pool:
        try:
            for task in tasks:
                pending.append((task, pool.submit(function, task)))
                if len(pending) >= AHEAD * workers:
                    yield pending[0][1].result()
                    pending.popleft()
            while pending:
                yield pending[0][1].result()
                pending.popleft()
        except BrokenProcessPool as error:
            suspects = "; ".join(str(task) for task, _ in list(pending)[: workers + 1])
            raise ChildProcessError(
                f"a worker process was killed, most often for want of memory: take fewer than {workers} workers, or "
                f"leave out what kills it; one of {suspects}"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
