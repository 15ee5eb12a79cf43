"""Generates the sounds of many prompts into files, in batches. Finished sounds are skipped."""

import json
import math
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
from .expected_length import expected_seconds
from .generator import Generator
from .long_form import LongSound, sampling_for
from .output_files import SoundJob
from .prompts import PATH_FIELDS

MANIFEST = "manifest.jsonl"
MADE = "work/made"  # of the folder: what ranks have made, until it is in the manifest
LENGTH = "seconds"  # of an entry's keys the only one that is a result
WRITTEN = "written"  # seconds since 1970, in the lines of ranks, of which the latest counts


@dataclass
class RunSummary:
    """The sounds that were written, and those that failed."""

    sounds: int = 0
    seconds: float = 0.0  # of sound
    elapsed: float = 0.0  # seconds to generate and write it
    failures: list[tuple[SoundJob, ValueError]] = field(default_factory=list)

    def add(self, other: "RunSummary") -> None:
        self.sounds, self.seconds = self.sounds + other.sounds, self.seconds + other.seconds
        self.elapsed += other.elapsed
        self.failures += other.failures

    @property
    def speed(self) -> str:
        return f"RTF {self.elapsed / self.seconds:.3f}" if self.seconds else "no sound"


class SoundManifest:
    """`manifest.jsonl` of a folder: one line for each of its sounds, with everything that determines it. Of several
    ranks each has a file of its own, until `compact`, which more than one of them may call."""

    def __init__(
        self,
        folder: Path,
        weights: str,
        sampling: SamplingConfig,
        adapters: Sequence[str] = (),
        rank: int | None = None,
    ) -> None:
        """`weights` and `adapters` are the `origin` and `adapters` of a generator, `sampling` that of the weights.
        `rank`: of several."""
        self.path, self.folder, self.weights, self.sampling = folder / MANIFEST, folder, weights, sampling
        self.own = self.path if rank is None else folder / MADE / f"{rank:05d}.jsonl"
        self.adapters = list(adapters)
        self.entries = self._read()

    def compact(self) -> None:
        """Rewrite the file with one line for each sound that exists, once no rank adds any."""
        self.entries = {name: e for name, e in self._read().items() if (self.folder / name).exists()}
        ranks = self._of_ranks()
        if self.path.exists() or ranks:
            entries = ({key: e[key] for key in e if key != WRITTEN} for e in self.entries.values())
            write_text(self.path, "".join(map(_line, entries)))
        for path in ranks:
            path.unlink(missing_ok=True)

    def unfinished(self, jobs: Sequence[SoundJob]) -> list[SoundJob]:
        """The jobs whose sounds are not there yet, also by what other ranks have made. Raises ValueError as
        `is_finished`."""
        existing = {job.out for job in jobs if job.out.exists()}
        self.entries = self._read()  # later: every file has its line before it appears
        return [job for job in jobs if job.out not in existing or not self.is_finished(job)]

    def is_finished(self, job: SoundJob) -> bool:
        """Raises ValueError where the job's file exists and was generated from something else."""
        if not job.out.exists():
            return False
        entry, expected = self.entries.get(self._name(job)), self.entry(job)
        if entry is None:
            raise ValueError(
                f"{job.location}{job.out} exists and is not in {self.path}; move it away, or overwrite with --force"
            )
        keys = [*expected, *(key for key in entry if key not in (LENGTH, WRITTEN))]
        if key := next((key for key in keys if entry.get(key) != expected.get(key)), None):
            raise ValueError(
                f"{job.location}{job.out} was made with {key} {entry.get(key)!r}, not {expected.get(key)!r}; move it "
                f"away, choose another folder, or generate it again with --force"
            )
        return True

    def entry(self, job: SoundJob) -> dict[str, Any]:
        """Everything that determines the sound of a job."""
        prompt, sampling = job.prompt, sampling_for(job.prompt, self.sampling)
        said = ("out", "text", "task", "reference")  # elsewhere in the entry, or without a part in the sound
        keys = {k: v for k, v in strict.to_dict(prompt).items() if v is not None and k not in said}
        keys |= {name: os.path.abspath(keys[name]) for name in PATH_FIELDS if name in keys}
        for name in ("start", "loop"):
            if not keys[name]:
                del keys[name]
        if prompt.seconds is not None:
            keys["asked_seconds"] = keys.pop("seconds")
        settings = {"steps": sampling.steps, "guidance": sampling.guidance, "weights": self.weights}
        if sampling.guidance_interval != (0.0, 1.0):
            settings["guidance_interval"] = "{:g}-{:g}".format(*sampling.guidance_interval)
        if sampling.rescale:
            settings["rescale"] = sampling.rescale
        if self.adapters:
            settings["adapters"] = self.adapters
        return {"file": self._name(job), "task": prompt.task_label, "text": prompt.full_text, **keys, **settings}

    def add(self, job: SoundJob, seconds: float) -> None:
        """Call this before the file appears: every file has its line."""
        entry = self.entry(job) | {LENGTH: round(seconds, 3)}
        self.own.parent.mkdir(parents=True, exist_ok=True)
        with self.own.open("a") as file:
            if self.own == self.path:
                file.write(_line(entry))
            else:  # behind a line that a kill may have cut off
                file.write("\n" + _line(entry | {WRITTEN: time.time()}))

    def _read(self) -> dict[str, dict[str, Any]]:
        """Entries by file name; the last of several lines counts, of ranks' the latest. These are read first: if
        another rank has just moved them into the manifest, they are found there."""
        of_ranks = [entry for path in self._of_ranks() for entry in _entries(path).values()]
        latest = sorted(of_ranks, key=lambda entry: float(entry.get(WRITTEN, 0)))
        return _entries(self.path) | {entry["file"]: entry for entry in latest}

    def _of_ranks(self) -> list[Path]:
        return sorted((self.folder / MADE).glob("*.jsonl"))

    def _name(self, job: SoundJob) -> str:
        return os.path.relpath(job.out, self.folder)


def run_jobs(
    generator: Generator,
    jobs: Sequence[SoundJob],
    batch: int,
    manifest: SoundManifest | None = None,
    on_sound: Callable[[SoundJob, LongSound, float], None] | None = None,
    show: bool = True,
) -> RunSummary:
    """Generates and writes every sound, `batch` at a time; a batch has one sampling. A job that fails does not stop the
    others. `on_sound` receives each written sound and the seconds that it took; `show` a bar on a terminal."""
    summary = RunSummary()
    hidden = None if show and len(jobs) > 1 else True
    with tqdm(total=len(jobs), unit=" sounds", disable=hidden, leave=False) as bar:
        for chunk in job_batches(generator, jobs, batch):
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


def job_batches(generator: Generator, jobs: Sequence[SoundJob], size: int) -> list[list[SoundJob]]:
    """Batches of one sampling and of about one length, the longest first: a batch takes as long as its longest
    sound."""
    clip = generator.model.config.codec.seconds
    seconds = expected_seconds([job.prompt for job in jobs]) if len(jobs) > size else [0.0] * len(jobs)
    groups: dict[tuple[SamplingConfig, float], list[tuple[int, SoundJob]]] = {}
    for job, length in zip(jobs, seconds, strict=True):
        key = sampling_for(job.prompt, generator.sampling), job.prompt.first_level
        groups.setdefault(key, []).append((math.ceil(length / clip - 1e-3), job))
    ordered = [[job for _, job in sorted(group, key=lambda row: -row[0])] for group in groups.values()]
    return [group[i : i + size] for group in ordered for i in range(0, len(group), size)]


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """Those of a file, which may be missing."""
    entries = {}
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        try:
            entry = strict.parse_json(line)
            entries[entry["file"]] = entry
        except (ValueError, KeyError, TypeError):
            continue  # cut off when its process was killed; that sound is not finished either
    return entries


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
