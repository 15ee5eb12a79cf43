"""Prepare procedural scenes: shard folders that appear only when complete, and the summary of a preparation."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ...models.config import ModelConfig
from ..core.files import atomic_output
from ..core.tasks import DOMAINS
from ..data.record import Record
from ..data.shards import ShardWriter
from ..scenes import scene, synth
from .counts import amounts_sentence
from .encode import EncoderSettings, SceneTask, stream_scenes
from .worker_pool import TaskEnd, TaskOutput, WorkerPool

BLOCK = 64  # scenes per task; affects the result, because batches decide the order of sums


@dataclass(frozen=True)
class PrepareSummary:
    """The result of a preparation: clips kept per domain, their total seconds, and rejections by reason."""

    clips: Mapping[str, float]
    seconds: float
    rejected: Mapping[str, float]

    def __str__(self) -> str:
        kept, rejected = amounts_sentence(self.clips), amounts_sentence(self.rejected)
        return f"kept {kept} clips ({self.seconds:.1f} s of sound), rejected {rejected}"


def prepare_scenes(
    out: Path, model: ModelConfig, clips: int, seed: int, music_share: float, workers: int
) -> PrepareSummary:
    """Render `clips` procedural scenes, a share of them music, into `out/audio` and `out/music`.

    The result does not depend on the number of workers or their speed.

    Raises:
        ValueError: `out` exists, a number is out of range, or the model does not fit the sound and pictures of scenes.
        OSError: the disk is full or not writable, or a worker process was killed.
    """
    if clips < 1 or not 0 <= music_share <= 1 or seed < 0:
        raise ValueError(
            f"clips {clips} must be at least 1, music share {music_share} between 0 and 1, seed {seed} 0 or more"
        )
    _check_scene_model(model)
    music = round(clips * music_share)
    encoders = EncoderSettings(model.codec, model.video)
    tasks = [
        SceneTask(encoders, domain, seed, first, min(first + BLOCK, count))
        for domain, count in zip(DOMAINS, (clips - music, music), strict=True)
        for first in range(0, count, BLOCK)
    ]
    with atomic_output(out) as folder:
        return _write(folder, model, _ordered_results(tasks, workers), clips)


def _check_scene_model(model: ModelConfig) -> None:
    codec, video = model.codec, model.video
    found = (codec.sample_rate, codec.samples, codec.audio_channels, video.size)
    made = (scene.SAMPLE_RATE, scene.SAMPLES, 1, synth.SIZE)
    if found != made:
        names = ("Hz", "samples per clip", "channel(s)", "pixels per side")
        as_text = [", ".join(f"{value} {name}" for value, name in zip(v, names, strict=True)) for v in (found, made)]
        raise ValueError(f"the configuration needs {as_text[0]}; scenes have {as_text[1]}: use configs/tiny.json")


def _write(folder: Path, model: ModelConfig, batches: Iterator[list[Record]], total: int) -> PrepareSummary:
    kept: Counter[str] = Counter()
    seconds = 0.0
    with ExitStack() as stack, tqdm(total=total, unit=" clips", disable=None) as bar:
        writers: dict[str, ShardWriter] = {}
        for records in batches:
            for record in records:
                if record.domain not in writers:
                    target = ShardWriter(folder / record.domain, model.codec, model.text, model.video)
                    writers[record.domain] = stack.enter_context(target)
                writers[record.domain].write(record)
                kept[record.domain] += 1
                seconds += record.seconds
            bar.update(len(records))
    return PrepareSummary(kept, seconds, {})


def _ordered_results(tasks: list[SceneTask], workers: int) -> Iterator[list[Record]]:
    """Yield the results of the tasks in their order. Few of them wait, because all tasks take about as long."""
    left, made = deque(tasks), dict[SceneTask, list[Record]]()
    with WorkerPool(stream_scenes, workers) as pool:
        for message in pool.run(lambda: left.popleft() if left else None):
            if isinstance(message, TaskOutput):
                made[message.task] = message.value
            elif isinstance(message, TaskEnd) and message.crash:
                raise ChildProcessError(
                    f"a worker process was killed ({message.crash}) at {message.task}, usually for lack of memory: "
                    f"use fewer than {workers} workers"
                )
            while tasks and tasks[0] in made:
                yield made.pop(tasks.pop(0))
