"""Generates the sounds of many prompts into files, in batches. Finished sounds are skipped."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...models import strict
from ...models.audiox import SamplingConfig
from ..core.files import write_text
from ..media.mux import write_media
from .generator import Generator
from .long_form import LongSound, sampling_for
from .output_files import SoundJob
from .prompts import PATH_FIELDS

MANIFEST = "manifest.jsonl"


@dataclass
class RunSummary:
    """The sounds that were written, and those that failed."""

    sounds: int = 0
    seconds: float = 0.0  # of sound
    elapsed: float = 0.0  # seconds to generate and write it
    failures: list[tuple[SoundJob, ValueError]] = field(default_factory=list)

    @property
    def speed(self) -> str:
        return f"RTF {self.elapsed / self.seconds:.3f}" if self.seconds else "no sound"


class SoundManifest:
    """`manifest.jsonl` of a folder: one line for each of its sounds, with everything that determines it."""

    def __init__(self, folder: Path, weights: Path, sampling: SamplingConfig) -> None:
        """`sampling` is that of the weights."""
        self.path, self.folder, self.weights, self.sampling = folder / MANIFEST, folder, weights, sampling
        self.entries = self._read()

    def compact(self) -> None:
        """Rewrite the file with one line for each sound that exists."""
        self.entries = {name: e for name, e in self._read().items() if (self.folder / name).exists()}
        if self.path.exists():
            write_text(self.path, "".join(_line(entry) for entry in self.entries.values()))

    def is_finished(self, job: SoundJob) -> bool:
        """Raises ValueError where the job's file exists and was generated from something else."""
        if not job.out.exists():
            return False
        entry, expected = self.entries.get(self._name(job)), self.entry(job)
        if entry is None:
            raise ValueError(
                f"{job.location}{job.out} exists and is not in {self.path}; move it away, or overwrite with --force"
            )
        if key := next((key for key in expected if entry.get(key) != expected[key]), None):
            raise ValueError(
                f"{job.location}{job.out} was made with {key} {entry.get(key)!r}, not {expected[key]!r}; move it "
                f"away, choose another folder, or generate it again with --force"
            )
        return True

    def entry(self, job: SoundJob) -> dict[str, Any]:
        """Everything that determines the sound of a job."""
        prompt, sampling = job.prompt, sampling_for(job.prompt, self.sampling)
        keys = {k: v for k, v in strict.to_dict(prompt).items() if v is not None and k not in ("out", "text", "task")}
        keys |= {name: os.path.abspath(keys[name]) for name in PATH_FIELDS if name in keys}
        if not prompt.start:
            del keys["start"]
        if prompt.seconds is not None:
            keys["asked_seconds"] = keys.pop("seconds")
        settings = {"steps": sampling.steps, "guidance": sampling.guidance, "weights": os.path.abspath(self.weights)}
        if sampling.rescale:
            settings["rescale"] = sampling.rescale
        return {"file": self._name(job), "task": prompt.task_label, "text": prompt.full_text, **keys, **settings}

    def add(self, job: SoundJob, seconds: float) -> None:
        """Call this before the file appears: every file has its line."""
        entry = self.entry(job) | {"seconds": round(seconds, 3)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(_line(entry))

    def _read(self) -> dict[str, dict[str, Any]]:
        """Entries by file name; the last of several lines counts."""
        entries = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                entry = strict.parse_json(line)
                entries[entry["file"]] = entry
            except (ValueError, KeyError, TypeError):
                continue  # cut off when its process was killed; that sound is not finished either
        return entries

    def _name(self, job: SoundJob) -> str:
        return os.path.relpath(job.out, self.folder)


def run_jobs(
    generator: Generator,
    jobs: Sequence[SoundJob],
    batch: int,
    manifest: SoundManifest | None = None,
    on_sound: Callable[[SoundJob, LongSound, float], None] | None = None,
) -> RunSummary:
    """Generates and writes every sound, `batch` at a time; a batch has one sampling. A job that fails does not stop the
    others. `on_sound` receives each written sound and the seconds that it took."""
    summary = RunSummary()
    with tqdm(total=len(jobs), unit=" sounds", disable=None if len(jobs) > 1 else True, leave=False) as bar:
        for chunk in _batches(generator, jobs, batch):
            begin = time.perf_counter()
            prompts, written = [job.prompt for job in chunk], list[tuple[SoundJob, LongSound]]()
            try:
                results = generator.generate_sounds(prompts, lambda done, of: bar.set_postfix_str(f"clip {done}/{of}"))
            except torch.OutOfMemoryError:
                raise ValueError(
                    f"the memory of {generator.device} does not hold {len(chunk)} sound(s) at a time; give a smaller "
                    f"--batch, or --dtype bf16"
                ) from None
            for job, sound in zip(chunk, results, strict=True):
                try:
                    if isinstance(sound, ValueError):
                        raise sound
                    _write_sound(job, sound, generator.sample_rate, manifest)
                    written.append((job, sound))
                except ValueError as error:  # of the sound, or because the pictures of its video are damaged
                    summary.failures.append((job, error))
            elapsed = time.perf_counter() - begin
            summary.sounds += len(written)
            summary.seconds += sum(sound.seconds for _, sound in written)
            summary.elapsed += elapsed
            for job, sound in written:
                if on_sound:
                    on_sound(job, sound, elapsed / len(chunk))
            bar.update(len(chunk))
    return summary


def _write_sound(job: SoundJob, sound: LongSound, rate: int, manifest: SoundManifest | None) -> None:
    if manifest:
        manifest.add(job, sound.seconds)
    write_media(job.out, sound.wave, rate, Path(job.prompt.video) if job.prompt.video else None, job.prompt.start)


def _batches(generator: Generator, jobs: Sequence[SoundJob], size: int) -> list[list[SoundJob]]:
    groups: dict[SamplingConfig, list[SoundJob]] = {}
    for job in jobs:
        groups.setdefault(sampling_for(job.prompt, generator.sampling), []).append(job)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
