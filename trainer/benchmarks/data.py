"""The speed at which a rank reads warm shards, and the share of a training step that reading takes."""

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
from ..data.prefetch import Prefetcher
from ..data.reader import Reader
from ..data.record import Record
from ..data.shards import ShardWriter
from ..engine.kernel_selection import KernelSelection
from ..engine.process_group import World
from ..engine.timing import time_interleaved
from ..training.pretrain import Pretraining
from .summary import Column, format_table, spread
from .synthetic_run import shared_folder, start_run

BATCHES_PER_TURN = 4
KEPT_BATCHES = 20  # some longer than others
COLUMNS = (
    Column("variant", "variant"),
    Column("samples/s", "samples_per_s", ".1f"),
    Column("low", "low", ".1f"),
    Column("high", "high", ".1f"),
    Column("MB/s", "mb_per_s", ".0f"),
)


def measure(
    config: PretrainConfig, samples: int, rounds: int, folder: Path | None = None, train: int = 0
) -> dict[str, Any]:
    """Samples/s and MB/s of each rank: whole batches as training takes them, records before their assembly, and the
    bytes of the shards alone. Random samples of the configured shapes are written first, into a temporary folder in
    `folder`; with `samples` 0 the configuration's own shards are read. Texts are encoded by hashing, which costs almost
    nothing.

    With `train` it also trains, in turns of so many steps; `steps` has the result (`_training_from_reader`).

    Raises ValueError if the configuration asks for what cannot run here.
    """
    config, world, selection = start_run(config)
    with _streams(config, samples, folder) as config:
        rows, sample_bytes = _rates(config, rounds, world)
        facts: dict[str, Any] = {"ranks": world.ranks, "workers": config.data.workers}
        facts |= {"rows": rows, "bytes_per_sample": sample_bytes}
        if train:
            facts["steps"] = _training_from_reader(config, rounds, train, world, selection)
        return facts


@contextlib.contextmanager
def _streams(config: PretrainConfig, samples: int, folder: Path | None) -> Iterator[PretrainConfig]:
    """The configuration with shards to read. With `samples`, the first rank writes random ones."""
    if not samples:
        yield config
        return
    with shared_folder(folder, "bench-data-") as path:
        streams = config.data.streams
        if torch.distributed.get_rank() == 0:
            for i in range(len(streams)):
                write_random_shards(config, path / str(i), samples // len(streams))
        torch.distributed.barrier()
        random_streams = [StreamConfig(str(path / str(i)), s.tasks) for i, s in enumerate(streams)]
        yield replace(config, data=replace(config.data, streams=tuple(random_streams)))


def _rates(config: PretrainConfig, rounds: int, world: World) -> tuple[list[dict[str, Any]], float]:
    """The rows, and the bytes of a sample."""
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
        variants[name] = _take(way(reader), BATCHES_PER_TURN)
    samples = sum(len(shard) for shard in readers[0].dataset.shards)
    sample_bytes = sum(file.stat().st_size for file in files) / samples
    read = BATCHES_PER_TURN * config.training.global_batch // world.ranks
    variants["bytes alone"] = _read_bytes(files, int(read * sample_bytes))
    rows = []
    for name, values in time_interleaved(variants, rounds, inner=1, warmup=2).items():
        speeds = spread((read / s for s in values), "samples_per_s")
        rows.append({"variant": name, **speeds, "mb_per_s": speeds["samples_per_s"] * sample_bytes / 1e6})
    return rows, sample_bytes


def _training_from_reader(
    config: PretrainConfig, rounds: int, inner: int, world: World, selection: KernelSelection
) -> dict[str, float]:
    """Training steps on the reader's batches and on batches kept in memory, in turns: as shares of a step, the time it
    waits for its batch and the processor time of the reader; and how much longer the steps on the reader's batches
    take."""
    trainer, steps = Pretraining(config, world, selection.ops()), itertools.count()
    reader = Reader(config, WordEncoder(config.model.text), world.rank, world.ranks)
    with Prefetcher(reader.batches(0), world.device) as batches:
        kept = itertools.cycle([next(batches) for _ in range(KEPT_BATCHES)])
        for _ in range(3):  # compiles
            trainer.step(next(steps), next(batches))
        before = {"waited": batches.waited, "busy": batches.busy}
        variants = {
            "kept": lambda: trainer.step(next(steps), next(kept)),
            "read": lambda: trainer.step(next(steps), next(batches)),
        }
        seconds = time_interleaved(variants, rounds, inner, warmup=0)
        whole = sum(seconds["read"]) * inner
        ratios = [b / a for a, b in zip(seconds["kept"], seconds["read"], strict=True)]
        return {
            "step_s": statistics.median(seconds["read"]),
            "waited_share": (batches.waited - before["waited"]) / whole,
            "processor_share": (batches.busy - before["busy"]) / whole,
            "longer": statistics.median(ratios) - 1,
        }


def _take(batches: Iterator[Any], count: int) -> Callable[[], None]:
    def take() -> None:
        for _ in itertools.islice(batches, count):
            pass

    return take


def _read_bytes(files: list[Path], count: int) -> Callable[[], None]:
    """A call that reads so many bytes of the files into memory."""

    def read() -> None:
        left = count
        for file in itertools.cycle(files):
            with file.open("rb", buffering=0) as handle:
                left -= len(handle.read(left))
            if left <= 0:
                return

    return read


def write_random_shards(config: PretrainConfig, folder: Path, samples: int) -> None:
    """Writes one stream of random samples, in the shapes that the configuration asks for."""
    model, rng = config.model, np.random.default_rng(0)
    codec, video = model.codec, model.video
    images = motion = 0
    if video:
        motion = video.steps
        images = model.video_rows - motion or round(codec.seconds * video.image_rate)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    with ShardWriter(folder, codec, model.text, video) as writer:
        for i in range(samples):
            latents = normal(codec.frames, codec.latent_channels), np.abs(normal(codec.frames, codec.latent_channels))
            record = Record(
                f"{folder.name}-{i}",
                "audio",
                *latents,
                normal(images, model.video_dim),
                normal(motion, model.video_dim),
                ["a bell, then two kicks", "two kicks after a bell"],
                {},
                codec.seconds,
            )
            writer.write(record)


def summary_lines(result: dict[str, Any]) -> list[str]:
    lines = format_table(result["rows"], COLUMNS)
    if steps := result.get("steps"):
        waited, busy, longer = (100 * steps[name] for name in ("waited_share", "processor_share", "longer"))
        lines.append(f"a step of {1000 * steps['step_s']:.1f} ms waits {waited:.2f} % of it for its batch")
        lines.append(
            f"and is {longer:.2f} % longer than on batches kept in memory; the reader takes {busy:.2f} % of a core"
        )
    return lines
