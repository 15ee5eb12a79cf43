"""Sounds from prompts to files, in batches; what is finished is not made again."""

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
from .jobs import Job
from .long_form import Sound, make, sampling_of
from .prompts import PATHS

MANIFEST = "manifest.jsonl"


@dataclass
class Made:
    """What came of some jobs."""

    sounds: int = 0
    heard: float = 0.0  # seconds of sound
    took: float = 0.0  # seconds to make it and write it
    failures: list[tuple[Job, ValueError]] = field(default_factory=list)

    @property
    def speed(self) -> str:
        return f"RTF {self.took / self.heard:.3f}" if self.heard else "nothing made"


class Manifest:
    """`manifest.jsonl` of a folder: a line for each of its sounds, with what it was made from."""

    def __init__(self, folder: Path, weights: Path, own: SamplingConfig) -> None:
        """`own` is the sampling of the weights."""
        self.path, self.folder, self.weights, self.own = folder / MANIFEST, folder, weights, own
        self.entries = self._read()

    def tidy(self) -> None:
        """One line for each sound that is there."""
        self.entries = {name: e for name, e in self._read().items() if (self.folder / name).exists()}
        if self.path.exists():
            write_text(self.path, "".join(_line(entry) for entry in self.entries.values()))

    def finished(self, job: Job) -> bool:
        """Raises ValueError where the job's file is there and was made from something else."""
        if not job.out.exists():
            return False
        entry, wanted = self.entries.get(self._name(job)), self.entry(job)
        if entry is None:
            raise ValueError(
                f"{job.where}{job.out} exists and is not in {self.path}; move it away, or overwrite with --force"
            )
        differing = [key for key in wanted if entry.get(key) != wanted[key]]
        if differing:
            key = differing[0]
            raise ValueError(
                f"{job.where}{job.out} was made with {key} {entry.get(key)!r}, not {wanted[key]!r}; move it "
                f"away, choose another folder, or make it anew with --force"
            )
        return True

    def entry(self, job: Job) -> dict[str, Any]:
        """Everything that settles how a job sounds."""
        prompt, sampling = job.prompt, sampling_of(job.prompt, self.own)
        given = {k: v for k, v in strict.to_dict(prompt).items() if v is not None and k not in ("out", "text", "task")}
        given |= {name: os.path.abspath(given[name]) for name in PATHS if name in given}
        if not prompt.start:
            del given["start"]
        if prompt.seconds is not None:
            given["asked_seconds"] = given.pop("seconds")
        settled = {"steps": sampling.steps, "guidance": sampling.guidance, "weights": os.path.abspath(self.weights)}
        return {"file": self._name(job), "task": prompt.kind, "text": prompt.words, **given, **settled}

    def add(self, job: Job, seconds: float) -> None:
        """Before the file appears: one that is there has its line."""
        entry = self.entry(job) | {"seconds": round(seconds, 3)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(_line(entry))

    def _read(self) -> dict[str, dict[str, Any]]:
        """By file; of several lines the last one."""
        entries = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                entry = json.loads(line)
                entries[entry["file"]] = entry
            except (ValueError, KeyError, TypeError):
                continue  # cut when its process was killed; that sound is then not finished either
        return entries

    def _name(self, job: Job) -> str:
        return os.path.relpath(job.out, self.folder)


def produce(
    generator: Generator,
    jobs: Sequence[Job],
    batch: int,
    manifest: Manifest | None = None,
    tell: Callable[[Job, Sound, float], None] | None = None,
) -> Made:
    """Makes and writes every sound, `batch` at a time, those together that are sampled alike. A job that fails is left
    out, the others go on. `tell` hears of each sound and the seconds that it took."""
    made = Made()
    with tqdm(total=len(jobs), unit=" sounds", disable=None if len(jobs) > 1 else True, leave=False) as bar:
        for chunk in _batches(generator, jobs, batch):
            begin = time.perf_counter()
            prompts, written = [job.prompt for job in chunk], list[tuple[Job, Sound]]()
            try:
                results = make(generator, prompts, lambda done, of: bar.set_postfix_str(f"clip {done} of {of}"))
            except torch.OutOfMemoryError:
                raise ValueError(
                    f"the memory of {generator.device} does not hold {len(chunk)} sound(s) at a time; give a smaller "
                    f"--batch, or --dtype bf16"
                ) from None
            for job, sound in zip(chunk, results, strict=True):
                if isinstance(sound, Sound):
                    try:
                        _publish(job, sound, generator.sample_rate, manifest)
                    except ValueError as error:  # the pictures of its video are damaged
                        made.failures.append((job, error))
                        continue
                    written.append((job, sound))
                    made.sounds += 1
                    made.heard += sound.seconds
                else:
                    made.failures.append((job, sound))
            took = time.perf_counter() - begin
            made.took += took
            for job, sound in written:
                if tell:
                    tell(job, sound, took / len(chunk))
            bar.update(len(chunk))
    return made


def _publish(job: Job, sound: Sound, rate: int, manifest: Manifest | None) -> None:
    if manifest:
        manifest.add(job, sound.seconds)
    video = Path(job.prompt.video) if job.prompt.video else None
    write_media(job.out, sound.wave, rate, video, job.prompt.start)


def _batches(generator: Generator, jobs: Sequence[Job], size: int) -> list[list[Job]]:
    alike: dict[SamplingConfig, list[Job]] = {}
    for job in jobs:
        alike.setdefault(sampling_of(job.prompt, generator.sampling), []).append(job)
    return [group[i : i + size] for group in alike.values() for i in range(0, len(group), size)]


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
