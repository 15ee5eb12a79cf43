"""How fast a rank reads warm shards, and what of a training step reading takes."""

import contextlib
import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...models.encoders.embedded import WordEncoder
from ..core.config import PretrainConfig, StreamConfig
from ..core.hardware import describe
from ..data.prefetch import Prefetcher
from ..data.reader import Reader
from ..data.record import Record
from ..data.shards import ShardWriter
from ..engine import kernel_selection, zero
from ..engine.timing import interleaved
from ..training.pretrain import Pretraining
from .train import shared_folder, without_weights

BATCHES = 4  # a turn
HELD = 20  # batches, some longer than others


def data(
    config: PretrainConfig, samples: int, rounds: int, folder: Path | None = None, train: int = 0
) -> dict[str, Any]:
    """Samples/s and MB/s of each rank: whole batches as training takes them, records before their assembly, and the
    bytes of the shards alone. Random samples of the configured shapes are written first, into a temporary folder in
    `folder`; with `samples` 0 the configuration's own shards are read. Texts are encoded by hashing, which costs next
    to nothing.

    With `train` it also trains, in turns of so many steps: `steps` are what comes of it (`_fed`).
    """
    kernel_selection.check(config.kernels, config.training.precision, config.model)
    config = without_weights(config)
    world = zero.init_process_group(config.training.cpu_threads)
    with _streams(config, samples, folder) as config:
        rows, each = _rates(config, rounds, world)
        facts = {"host": describe(), "ranks": world.ranks, "workers": config.data.workers}
        facts |= {"rows": rows, "bytes_a_sample": each}
        return facts | {"steps": _fed(config, rounds, train, world)} if train else facts


@contextlib.contextmanager
def _streams(config: PretrainConfig, samples: int, folder: Path | None) -> Iterator[PretrainConfig]:
    """The configuration with shards to read, which the first rank writes where it is to have random ones."""
    if not samples:
        yield config
        return
    with shared_folder(folder, "bench-data-") as place:
        streams = config.data.streams
        if torch.distributed.get_rank() == 0:
            for i in range(len(streams)):
                _write(config, place / str(i), samples // len(streams))
        torch.distributed.barrier()
        made = [StreamConfig(str(place / str(i)), s.tasks) for i, s in enumerate(streams)]
        yield replace(config, data=replace(config.data, streams=tuple(made)))


def _rates(config: PretrainConfig, rounds: int, world: zero.World) -> tuple[list[dict[str, Any]], float]:
    """Rows, and bytes a sample."""
    text = WordEncoder(config.model.text)
    files = sorted(file for stream in config.data.streams for file in Path(stream.path).glob("*.mds"))
    variants, readers = {}, []
    ways: dict[str, Callable[[Reader], Iterator[Any]]] = {
        "batches": lambda reader: reader.batches(0),
        "records": lambda reader: reader.samples(0),
    }
    for name, way in ways.items():
        reader = Reader(config, text, world.rank, world.ranks)
        readers.append(reader)
        variants[name] = _taking(way(reader), BATCHES)
    samples = sum(len(shard) for shard in readers[0].dataset.shards)
    each = sum(file.stat().st_size for file in files) / samples
    read = BATCHES * config.training.global_batch // world.ranks
    variants["bytes alone"] = _bytes(files, int(read * each))
    rows = []
    for name, values in interleaved(variants, rounds, inner=1, warmup=2).items():
        speeds = sorted(read / s for s in values)
        median = statistics.median(speeds)
        rows.append(
            {
                "variant": name,
                "samples_per_s": median,
                "low": speeds[0],
                "high": speeds[-1],
                "mb_per_s": median * each / 1e6,
            }
        )
    return rows, each


def _fed(config: PretrainConfig, rounds: int, inner: int, world: zero.World) -> dict[str, float]:
    """Training steps from the reader beside steps on batches that are held, in turns: what a step waits for its batch
    and what of the processor the reader takes, as shares of a step, and how much longer the steps are that it feeds."""
    ops = kernel_selection.chosen(config, world, config.training.precision).ops()
    task, steps = Pretraining(config, world, ops), itertools.count()
    reader = Reader(config, WordEncoder(config.model.text), world.rank, world.ranks)
    with Prefetcher(reader.batches(0), world.device) as batches:
        held = itertools.cycle([next(batches) for _ in range(HELD)])
        for _ in range(3):  # compiles
            task.step(next(steps), next(batches))
        before = {"waited": batches.waited, "busy": batches.busy}
        variants: dict[str, Callable[[], None]] = {
            "held": lambda: _discard(task.step(next(steps), next(held))),
            "fed": lambda: _discard(task.step(next(steps), next(batches))),
        }
        seconds = interleaved(variants, rounds, inner, warmup=0)
        whole = sum(seconds["fed"]) * inner
        ratios = [b / a for a, b in zip(seconds["held"], seconds["fed"], strict=True)]
        return {
            "step_s": statistics.median(seconds["fed"]),
            "waited_share": (batches.waited - before["waited"]) / whole,
            "processor_share": (batches.busy - before["busy"]) / whole,
            "longer": statistics.median(ratios) - 1,
        }


def _taking(batches: Iterator[Any], count: int) -> Callable[[], None]:
    def take() -> None:
        for _ in itertools.islice(batches, count):
            pass

    return take


def _bytes(files: list[Path], count: int) -> Callable[[], None]:
    """Reads so many bytes of the files into memory."""

    def read() -> None:
        left = count
        for file in itertools.cycle(files):
            with file.open("rb", buffering=0) as handle:
                left -= len(handle.read(left))
            if left <= 0:
                return

    return read


def _write(config: PretrainConfig, folder: Path, samples: int) -> None:
    model, rng = config.model, np.random.default_rng(0)
    codec, video = model.codec, model.video
    images = round(codec.seconds * video.image_rate)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    with ShardWriter(folder, codec, model.text, video) as writer:
        for i in range(samples):
            latents = normal(codec.frames, codec.latent_channels), np.abs(normal(codec.frames, codec.latent_channels))
            record = Record(
                f"{folder.name}-{i}",
                "audio",
                *latents,
                normal(images, video.dim),
                normal(video.steps, video.dim),
                ["a bell, then two kicks", "two kicks after a bell"],
                {},
                codec.seconds,
            )
            writer.write(record)


def table(result: dict[str, Any]) -> list[str]:
    """Lines to print."""
    lines = [f"{'variant':20} {'samples/s':>10} {'low':>8} {'high':>8} {'MB/s':>8}"]
    for row in result["rows"]:
        speeds = f"{row['samples_per_s']:10.1f} {row['low']:8.1f} {row['high']:8.1f}"
        lines.append(f"{row['variant']:20} {speeds} {row['mb_per_s']:8.0f}")
    if steps := result.get("steps"):
        waited, busy, longer = (100 * steps[name] for name in ("waited_share", "processor_share", "longer"))
        lines.append(f"a step of {1000 * steps['step_s']:.1f} ms waits {waited:.2f} % of it for its batch")
        lines.append(
            f"and is {longer:.2f} % longer than on batches that are held; the reader takes {busy:.2f} % of a core"
        )
    return lines


def _discard(_: object) -> None:
    return None
