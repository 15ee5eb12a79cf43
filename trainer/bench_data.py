"""How fast a rank reads warm shards of a model's schema."""

import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..models.encoders.embedded import WordEncoder
from . import zero
from .config import RunConfig, StreamConfig
from .data.reader import Reader
from .data.record import Record
from .data.shards import ShardWriter
from .hardware import describe
from .timing import interleaved

BATCHES = 4  # a turn


def data(config: RunConfig, samples: int, rounds: int, folder: Path | None = None) -> dict[str, Any]:
    """Samples/s and MB/s of one rank: whole batches as training takes them, records before their assembly, and the
    bytes of the shards alone. Random samples of the configured shapes are written first, into a temporary folder in
    `folder`; texts are encoded by hashing, which costs next to nothing.
    """
    zero.start(config.training.threads)
    text = WordEncoder(replace(config.model.text, kind="words"))
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-data-") as made:
        streams = tuple(
            StreamConfig(str(Path(made, f"{i}-{Path(stream.path).name}")), stream.tasks)
            for i, stream in enumerate(config.data.streams)
        )
        for stream in streams:
            _write(config, Path(stream.path), samples // len(streams))
        config = replace(config, data=replace(config.data, streams=streams))
        files = sorted(Path(made).rglob("*.mds"))
        each = sum(file.stat().st_size for file in files) / samples
        batch, variants, readers = config.training.global_batch, {}, []
        ways: dict[str, Callable[[Reader], Iterator[Any]]] = {
            "batches": lambda reader: reader.batches(0),
            "records": lambda reader: reader.samples(0),
        }
        for name, way in ways.items():
            reader = Reader(config, text, 0, 1)
            readers.append(reader)
            variants[name] = _taking(way(reader), BATCHES)
        variants["bytes alone"] = _bytes(files, int(BATCHES * batch * each))
        seconds = interleaved(variants, rounds, inner=1, warmup=2)
    rows = []
    for name, values in seconds.items():
        speeds = sorted(BATCHES * batch / s for s in values)
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
    return {"host": describe(), "rows": rows, "bytes_a_sample": each, "workers": config.data.workers}


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


def _write(config: RunConfig, folder: Path, samples: int) -> None:
    model, rng = config.model, np.random.default_rng(0)
    codec, video = model.codec, model.video
    images = round(codec.seconds * video.image_rate)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    with ShardWriter(folder, codec, model.text, video) as writer:
        for i in range(samples):
            latents = normal(codec.frames, codec.channels), np.abs(normal(codec.frames, codec.channels))
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
    return lines
