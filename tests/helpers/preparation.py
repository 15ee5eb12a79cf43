"""Manifests to prepare, a small model to prepare them for, and what came of it."""

import json
import multiprocessing
import multiprocessing.process
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from audiox_trainer.models.config import (
    BackboneConfig,
    CodecConfig,
    FusionConfig,
    ModelConfig,
    TextConfig,
    TransformerConfig,
    VideoConfig,
)
from audiox_trainer.trainer.core.cli import run
from audiox_trainer.trainer.data.record import from_columns
from audiox_trainer.trainer.prepare import prepare_files as module
from audiox_trainer.trainer.prepare.encode import EncodedClips, EntryTask, Rejection, encode_entry
from audiox_trainer.trainer.prepare.prepare_files import PrepareRank, prepare_files

MODEL = ModelConfig(
    codec=CodecConfig("logmel", sample_rate=8000, audio_channels=1, hop=512, frames=32, latent_channels=128),
    text=TextConfig("words", dim=64, max_tokens=24, pad_to_multiple_of=24),
    video=VideoConfig("frames", dim=64, image_rate=7.8125, motion_rate=15.625, size=16, steps=32, pool=2),
    video_temporal=TransformerConfig(32, 1, 2),
    audio_temporal=TransformerConfig(32, 1, 2),
    fusion=FusionConfig(queries=2, width=32, depth=1, heads=2),
    backbone=BackboneConfig(width=32, depth=1, heads=2, mlp_hidden=32),
)


def records(folder):
    """By streaming's own decoder of a shard; its data set would share memory with other tests on the machine."""
    from streaming.base.format import reader_from_json  # after trainer/data/streaming_library.py

    shards = json.loads((folder / "index.json").read_text())["shards"]
    readers = [reader_from_json(str(folder), "", shard) for shard in shards]
    return [from_columns(reader[i], MODEL.video.dim) for reader in readers for i in range(reader.samples)]


def contents(folder):
    """All files but what ranks told one another."""
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: p.read_bytes() for name, p in files.items() if not name.startswith("work/ranks/")}


def sound(path, seconds=1.0, level=0.5, wave=None):
    """Writes a tone, or a `wave`, at 8 kHz."""
    tone = level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 8000)) / 8000)
    soundfile.write(path, tone if wave is None else wave, 8000)


def manifest(folder, *lines):
    path = folder / "clips.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


NOBODY = 65534


def start_rank(
    out: Path, path: Path, rank: int = 0, ranks: int = 1, workers: int = 1, nobody: bool = False
) -> multiprocessing.process.BaseProcess:
    """A rank of `prepare_files` in its own process, as a launcher starts it. With `nobody` its workers are a user
    who may not read everything."""
    place = PrepareRank(rank, ranks, patience=3.0)
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_rank, args=(str(out), path, place, workers, nobody))
    process.start()
    return process


def _rank(out: str, path: Path, place: PrepareRank, workers: int, nobody: bool) -> None:
    if nobody:
        module.encode_entry = encode_as_nobody
    sys.exit(run(lambda: print(prepare_files(out, MODEL, path, 0, workers, place=place))))


def encode_as_nobody(task: EntryTask) -> Iterator[EncodedClips | Rejection]:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    yield from encode_entry(task)
