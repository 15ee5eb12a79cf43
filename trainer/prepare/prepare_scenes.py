"""Prepare procedural scenes: shard folders that appear only when complete, and the summary of a preparation."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ...models.config import AnyModelConfig
from ..core.english import amounts_sentence
from ..core.files import atomic_output
from ..core.tasks import DOMAINS
from ..data.record import Record
from ..data.shards import ShardWriter
from ..scenes import scene, synth
from ..workers.driver import drive
from ..workers.process_pool import ProcessPool
from .decode import EncoderSettings
from .encode import SceneTask, stream_scenes

BLOCK = 64  # scenes per task; affects the result, because batches decide the order of sums


@dataclass(frozen=True)
class PrepareSummary:
    """The result of a preparation: clips kept per domain, their total seconds, rejections by reason, and in words what
    it took."""

    clips: Mapping[str, float]
    seconds: float
    rejected: Mapping[str, float]
    cost: str = field(default="", compare=False)

    def __str__(self) -> str:
        kept, rejected = amounts_sentence(self.clips), amounts_sentence(self.rejected)
        said = f"kept {kept} clips ({self.seconds:.1f} s of sound), rejected {rejected}"
        return f"{said}; {self.cost}" if self.cost else said


def prepare_scenes(
    out: Path,
    model: AnyModelConfig,
    clips: int,
    seed: int,
    music_share: float,
    workers: int,
    extra: str = "",
    pairs: bool = False,
) -> PrepareSummary:
    """Render `clips` procedural scenes, a share of them music, into `out/audio` and `out/music`. With `extra`, one of
    `EXTRA_CATEGORIES`, every audio scene has this sound; with `pairs` every music scene has what precedes it.

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
        SceneTask(encoders, domain, seed, first, min(first + BLOCK, count), extra, pairs)
        for domain, count in zip(DOMAINS, (clips - music, music), strict=True)
        for first in range(0, count, BLOCK)
    ]
    with atomic_output(out) as folder:
        return _write(folder, model, _ordered_results(tasks, workers), clips)


def _check_scene_model(model: AnyModelConfig) -> None:
    codec, video = model.codec, model.video
    found = (codec.sample_rate, codec.samples, codec.audio_channels, video.size if video else synth.SIZE)
    made = (scene.SAMPLE_RATE, scene.SAMPLES, 1, synth.SIZE)
    if found != made:
        names = ("Hz", "samples per clip", "channel(s)", "pixels per side")
        as_text = [", ".join(f"{value} {name}" for value, name in zip(v, names, strict=True)) for v in (found, made)]
        raise ValueError(f"the configuration needs {as_text[0]}; scenes have {as_text[1]}: use configs/tiny.json")


def _write(folder: Path, model: AnyModelConfig, batches: Iterator[list[Record]], total: int) -> PrepareSummary:
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
    made = dict[SceneTask, list[Record]]()
    with ProcessPool([stream_scenes] * workers) as pool:
        for done, records in drive(pool, iter(list(tasks)), lambda: None):
            made[done] = records
            while tasks and tasks[0] in made:
                yield made.pop(tasks.pop(0))
