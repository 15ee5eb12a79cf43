"""Manifests to prepare, a small model to prepare them for, and what came of it."""

import json
import multiprocessing
import multiprocessing.process
import os
import sys
from collections.abc import Iterator
from importlib import import_module
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
from audiox_trainer.trainer.manifest.manifest import ManifestEntry
from audiox_trainer.trainer.prepare import prepare_files as module
from audiox_trainer.trainer.prepare.clip_batches import ClipBatches
from audiox_trainer.trainer.prepare.cost_file import COST_FILE
from audiox_trainer.trainer.prepare.decode import DecodedClips, EncoderSettings, EntryTask, Rejection, decode_entry
from audiox_trainer.trainer.prepare.encode import EncodedClip, encode_clips
from audiox_trainer.trainer.prepare.filters import FiltersConfig
from audiox_trainer.trainer.prepare.prepare_files import Workers, prepare_files

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
    import_module("audiox_trainer.trainer.data.streaming_library")  # enters the package without its start
    from streaming.base.format import reader_from_json

    shards = json.loads((folder / "index.json").read_text())["shards"]
    readers = [reader_from_json(str(folder), "", shard) for shard in shards]
    return [from_columns(reader[i], MODEL.video.dim) for reader in readers for i in range(reader.samples)]


def contents(folder):
    """All files but what it took, which is never the same twice."""
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: p.read_bytes() for name, p in files.items() if name != COST_FILE}


def sound(path, seconds=1.0, level=0.5, wave=None):
    """Writes a tone, or a `wave`, at 8 kHz."""
    tone = level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 8000)) / 8000)
    soundfile.write(path, tone if wave is None else wave, 8000)


def manifest(folder, *lines):
    path = folder / "clips.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def encode_file(entry: ManifestEntry, filters: FiltersConfig | None = None) -> list[EncodedClip | Rejection]:
    """What becomes of a file's clips: those that decoding leaves out, then the others in order."""
    encoders = EncoderSettings(MODEL.codec, MODEL.video, filters or FiltersConfig())
    batches, found, left_out = ClipBatches([entry.line]), list[EncodedClip | Rejection](), list[Rejection]()
    for piece in decode_entry(EntryTask(encoders, entry)):
        assert isinstance(piece, DecodedClips)
        left_out += piece.rejections
        for batch in batches.add(entry, piece.clips):
            found += encode_clips(encoders, batch)
    for batch in batches.end(entry.line):
        found += encode_clips(encoders, batch)
    return [*left_out, *found]


NOBODY = 65534


def start_driver(
    out: Path | str, path: Path, workers: int | Workers = 1, nobody: bool = False
) -> multiprocessing.process.BaseProcess:
    """`prepare_files` in its own process, as a shell starts it. With `nobody` its decoders are a user who may not read
    everything."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_driver, args=(str(out), path, workers, nobody, dict(os.environ)))
    process.start()
    return process


def _driver(out: str, path: Path, workers: int | Workers, nobody: bool, environment: dict[str, str]) -> None:
    os.environ |= environment
    if nobody:
        module.decode_entry = decode_as_nobody
    sys.exit(run(lambda: print(prepare_files(out, MODEL, path, 0, workers))))


def decode_as_nobody(task: EntryTask) -> Iterator[DecodedClips | Rejection]:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    yield from decode_entry(task)


def stage_results(out: Path) -> list[bytes]:
    """What a stage has written that does not depend on who worked: the new manifest, and what it left out."""
    return [out.with_name(out.name + ending).read_bytes() for ending in ("", ".left_out.jsonl")]
