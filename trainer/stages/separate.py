"""Separate the sound of lines: music from speech. The wanted stems become files, which new lines name.

OUT_DIR/000000/000000017.music.flac     of line 17; 16 bits
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from ..core.credentials import redacted
from ..core.files import atomic_output, remove
from ..core.tasks import Domain
from ..manifest.manifest import ManifestEntry
from ..media.audio_decode import Wave
from ..prepare.decode import Rejection
from ..workers.effort import on_device
from .measure import whole_sound
from .run_stage import run_stage, work_folder
from .scorer_filters import device_of, loaded, machine_faults
from .separators import Separator, load_separator
from .stage import Judging, Stage, StageResult, StageSummary, StageTask, StageWorkers, result_of

SILENT_STEM = "silent stem"
QUIETEST = -80.0  # dB of full scale: the peak below which a stem is silent
UNWANTED = ("vocals", "speech", "noise")  # stems that are not music, unless they are asked for
FOLDER_LINES = 1000  # lines whose files lie in one folder


@dataclass(frozen=True)
class Separation:
    """What is separated, by what, and where it is written."""

    model: str  # as of `load_separator`
    weights: Path
    out_dir: Path
    stems: tuple[str, ...] = ()  # each a name or a sum, "drums+bass"; default: all but voices and noise
    domains: tuple[Domain, ...] = ("music",)  # lines of others stay as they are
    device: str = ""  # default: a GPU of the machine, else the CPU


@dataclass(frozen=True)
class SeparateJudge:
    """Separates one line, in a decoder."""

    separation: Separation
    folder: Path  # of the new manifest

    def __call__(self, task: StageTask) -> Judging:
        return result_of(task.entry, self._judge(task.entry))

    def _judge(self, entry: ManifestEntry) -> Judging:
        if entry.domain not in self.separation.domains:
            seconds = entry.end - entry.start if entry.end is not None else 0.0  # it is not decoded
            yield StageResult([{}], seconds=seconds, kept_seconds=seconds)
            return
        torch.set_num_threads(1)  # there is a process per core, and sums must not depend on their number
        separator = loaded(partial(_separator, self.separation))
        sums = wanted_sums(self.separation.stems, separator.stems)
        wave = whole_sound(entry, separator.rate, separator.channels)
        seconds = wave.shape[1] / separator.rate
        yield None
        try:
            with machine_faults(), on_device(str(device_of(self.separation.device))):
                stems = yield from separator.separate(wave, list(sums.values()))
        except ValueError as error:  # what is no number
            left_out = [Rejection(entry.line, entry.name, "separator", str(error))]
            yield StageResult(left_out=left_out, seconds=seconds)
            return
        result = StageResult([], [], seconds)
        for name, stem in zip(sums, stems, strict=True):
            peak = float(np.abs(stem).max())
            loudness = 20 * np.log10(max(peak, 1e-9))
            result.values[f"{name} peak"] = loudness
            if loudness < QUIETEST:
                detail = f"nothing of {name} above {QUIETEST:g} dB is left"
                result.left_out.append(Rejection(entry.line, entry.name, SILENT_STEM, detail))
            else:
                path = self._write(entry, name, stem / np.float32(max(1.0, peak)), separator.rate)
                result.changes.append(self._changes(entry, name, path, separator.name))
        yield replace(result, kept_seconds=seconds * len(result.changes))

    def _write(self, entry: ManifestEntry, name: str, wave: Wave, rate: int) -> Path:
        group, out_dir = f"{entry.line // FOLDER_LINES:06d}", self.separation.out_dir
        path = out_dir / group / f"{entry.line:09d}.{name}.flac"
        with (
            atomic_output(path, replace=True) as partial,
            soundfile.SoundFile(partial, "w", rate, len(wave), "PCM_16", format="FLAC") as file,
        ):
            for samples in _silence(entry, rate):
                file.write(np.zeros((samples, len(wave)), np.float32))
            file.write(wave.T)
        return path

    def _changes(self, entry: ManifestEntry, name: str, path: Path, model: str) -> dict[str, Any]:
        """What a line says otherwise. Its pictures stay where they are, and its sound keeps its place with them."""
        place = path.relative_to(self.folder) if path.is_relative_to(self.folder) else path
        sound = redacted(entry.audio)  # shards keep it
        source = {"audio": sound, "start": entry.start, "end": entry.end, "stem": name, "model": model}
        times = {} if entry.video else {"start": None, "end": None}
        return {"audio": str(place), **times, "separated": source}


def _silence(entry: ManifestEntry, rate: int) -> Iterator[int]:
    """Blocks of samples before the sound of a film's segment, whose start counts for sound and pictures alike."""
    left = round(entry.start * rate) if entry.video else 0
    while left > 0:
        yield min(left, rate)
        left -= rate


def wanted_sums(wanted: tuple[str, ...], stems: tuple[str, ...]) -> dict[str, list[int]]:
    """The places of the stems of each sum, by its name. Raises ValueError for a stem that there is not."""
    wanted = wanted or ("+".join(stem for stem in stems if stem not in UNWANTED),)
    for name in wanted:
        if unknown := [part for part in name.split("+") if part not in stems]:
            raise ValueError(f"--stems {name}: no stem {unknown[0]!r}; expected sums of {', '.join(stems)}")
    return {name: [stems.index(part) for part in name.split("+")] for name in wanted}


@cache
def _separator(separation: Separation) -> Separator:
    """The separator of this process."""
    return load_separator(separation.model, separation.weights, device_of(separation.device))


def separate_manifest(manifest: Path, out: Path, separation: Separation, workers: StageWorkers) -> StageSummary:
    """Write `out` with a line per stem. Raises as `run_stage`, and ValueError where the network is missing or not as it
    says, or the folder of stems holds something else."""
    out_dir = separation.out_dir.absolute()
    begun = out.exists() or work_folder(out).exists()
    if not begun and out_dir.exists() and any(out_dir.iterdir()):
        raise ValueError(f"{out_dir} is not empty and is left as it is; remove it or choose another --out-dir")
    separation = replace(separation, out_dir=out_dir)
    settings = {"separator": _check(separation), "stems": list(separation.stems), "domains": list(separation.domains)}
    judge = SeparateJudge(separation, out.parent.absolute())
    names = wanted_sums(separation.stems, _separator(separation).stems)
    _separator.cache_clear()  # the processes that decode load their own
    settings, thresholds = settings | {"out dir": str(out_dir)}, {f"{name} peak": QUIETEST for name in names}
    stage = Stage("separate", settings, judge, thresholds, gpus=separation.device != "cpu")
    summary = run_stage(stage, manifest, out, workers)
    for left in out_dir.rglob(".*.partial-*"):  # of processes that were killed
        remove(left)
    return summary


def _check(separation: Separation) -> str:
    """The separator's digest. Raises ValueError where it is not as it says."""
    separator = _separator(separation)
    sums = list(wanted_sums(separation.stems, separator.stems).values())
    noise = 0.1 * np.random.default_rng(0).standard_normal((separator.channels, separator.rate)).astype(np.float32)
    for _ in separator.separate(noise, sums):
        pass
    return separator.digest
