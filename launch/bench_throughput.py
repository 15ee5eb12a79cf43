"""Measure how many hours of sound and of film a core takes through each stage of a preparation in an hour, and a GPU
through the networks."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from audiox_trainer.models.config import AnyModelConfig
from audiox_trainer.trainer.benchmarks import encode
from audiox_trainer.trainer.benchmarks.decode import busy_film
from audiox_trainer.trainer.benchmarks.summary import Column, format_table
from audiox_trainer.trainer.core.config import PretrainConfig
from audiox_trainer.trainer.manifest.manifest import ManifestEntry, read_entries
from audiox_trainer.trainer.manifest.scan import scan
from audiox_trainer.trainer.media.clips import read_clips
from audiox_trainer.trainer.media.source import MediaError
from audiox_trainer.trainer.stages.filter import FilterJudge
from audiox_trainer.trainer.stages.filter_config import LineFilters
from audiox_trainer.trainer.stages.segment import Segmentation, SegmentJudge
from audiox_trainer.trainer.stages.stage import Judge, StageTask

LINKS = 1000  # names that `scan` finds, to few files
RATE = 48_000  # Hz of the sound that is made
WHOLE = "segment --at time"  # the stage that reads all of a sound, and no pictures
Kinds = dict[str, list[ManifestEntry]]  # "sound" and "film"
Stage = Callable[[ManifestEntry], float]  # does its work on an entry, and returns how many seconds of sound that had
COLUMNS = (
    Column("stage", "stage"),
    Column("h of sound per core hour", "sound", ",.1f"),
    Column("lowest", "sound_low", ",.1f"),
    Column("h of film per core hour", "film", ",.1f"),
    Column("lowest", "film_low", ",.1f"),
    Column("h per GPU hour", "gpu", ",.1f"),
    Column("lowest", "gpu_low", ",.1f"),
)


def measure(
    config: PretrainConfig, random_weights: bool, batch: int, rounds: int, seconds: float, media: Path | None
) -> dict[str, Any]:
    """Rows of the stages, by processor time of this process, and of the networks that `files` runs: by the clock, on
    the GPU that is here or on all threads. `media` is a folder of sounds and films (default: a noise in FLAC and a busy
    film of `seconds`, made for this). Stages take turns, and one round before the others does not count.

    Raises ValueError where the folder holds no media, or none of them can be read.
    """
    model = config.model
    with tempfile.TemporaryDirectory(prefix="bench-throughput-") as temporary:
        folder = media or _made_media(Path(temporary, "media"), seconds)
        scan(folder, Path(temporary, "all.jsonl"), "audio", False)
        entries = read_entries(Path(temporary, "all.jsonl"))
        kinds = {"sound": [e for e in entries if not e.video], "film": [e for e in entries if e.video]}
        stages = _stages(model)
        read = {kind: sum(map(stages[WHOLE], of_kind)) for kind, of_kind in kinds.items()}
        if unread := [of_kind for kind, of_kind in kinds.items() if of_kind and not read[kind]]:
            raise ValueError(f"nothing of {unread[0][0].name} and the like could be read; give media that are intact")
        rows = [_scan_row(Path(temporary, "links"), kinds, read), *_stage_rows(stages, kinds, rounds)]
    networks = encode.measure(config, random_weights, batch, rounds, None)
    rows += _network_rows(networks, model.codec.seconds)
    lengths = {kind: len(of_kind) for kind, of_kind in kinds.items()}
    return {"files": lengths, "device": networks["device"], "threads": torch.get_num_threads(), "rows": rows}


def summary_lines(result: dict[str, Any]) -> list[str]:
    return format_table(result["rows"], COLUMNS)


def _made_media(folder: Path, seconds: float) -> Path:
    folder.mkdir()
    busy_film(folder / "film.mp4", seconds)
    noise = np.random.default_rng(0).normal(scale=0.1, size=(round(RATE * seconds), 2))
    soundfile.write(folder / "sound.flac", noise, RATE)
    return folder


def _stages(model: AnyModelConfig) -> dict[str, Stage]:
    """By name. All decode what they need of a line."""

    def judged(judge: Judge) -> Stage:
        return lambda entry: sum(result.seconds for result in judge(StageTask(entry)) if result)

    def clips(entry: ManifestEntry) -> float:
        with suppress(MediaError):
            return sum(clip.seconds for clip in read_clips(entry.audio, entry.video, model.codec, model.video))
        return 0.0

    stages = {f"segment --at {at}": judged(SegmentJudge(Segmentation(at=at))) for at in ("time", "silences", "scenes")}
    stages["filter"] = judged(FilterJudge(LineFilters()))
    stages["filter --no-duplicates"] = judged(FilterJudge(LineFilters(), duplicates=True))
    return stages | {"files: decoding and cutting": clips}


def _stage_rows(stages: dict[str, Stage], kinds: Kinds, rounds: int) -> list[dict[str, Any]]:
    rates: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in kinds} for name in stages}
    for number in range(rounds + 1):
        for name, stage in stages.items():
            for kind, entries in kinds.items():
                begin = time.process_time()
                seconds = sum(map(stage, entries))
                spent = time.process_time() - begin
                if number and entries:
                    rates[name][kind].append(seconds / spent)
    return [{"stage": name, **_cells("sound", of["sound"]), **_cells("film", of["film"])} for name, of in rates.items()]


def _scan_row(folder: Path, kinds: Kinds, read: dict[str, float]) -> dict[str, Any]:
    """Of LINKS names to the files of each kind, of which `read` has the seconds."""
    row: dict[str, Any] = {"stage": "scan"}
    for kind, entries in kinds.items():
        if not entries:
            continue
        place = folder / kind
        place.mkdir(parents=True)
        for number in range(LINKS):
            path = Path(entries[number % len(entries)].audio)
            (place / f"{number}{path.suffix}").symlink_to(path)
        begin = time.process_time()
        scan(place, folder / f"{kind}.jsonl", "audio", False)
        spent = time.process_time() - begin
        row |= _cells(kind, [LINKS * read[kind] / len(entries) / spent])
    return row


def _network_rows(result: dict[str, Any], clip_seconds: float) -> list[dict[str, Any]]:
    on_gpu = result["device"].startswith("cuda")
    cores = 1 if on_gpu else torch.get_num_threads()
    rows = []
    for part in result["rows"][:-1]:  # without the text, which is encoded while training
        rate, low = (clip_seconds * part[key] / cores for key in ("clips_per_s", "low"))
        row: dict[str, Any] = {"stage": f"files: {part['part']}"}
        for kind in ["gpu"] if on_gpu else ["sound", "film"] if part["part"] == "codec" else ["film"]:
            row |= {kind: rate, f"{kind}_low": low}
        rows.append(row)
    return rows


def _cells(kind: str, rates: Sequence[float]) -> dict[str, float]:
    return {kind: statistics.median(rates), f"{kind}_low": min(rates)} if rates else {}
