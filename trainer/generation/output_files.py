"""The file that each sound is written to. Imports nothing slow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile

from ..core.english import complaint_list
from ..media.mux import check_writable
from .prompts import PATH_FIELDS, Prompt


@dataclass(frozen=True)
class SoundJob:
    """A prompt and the file for its sound."""

    prompt: Prompt
    out: Path
    line: int | None = None  # in a file of prompts

    @property
    def location(self) -> str:
        """Prefix of a message about this job."""
        return "" if self.line is None else f"line {self.line}: "


def assign_files(prompts: Sequence[tuple[int | None, Prompt]], folder: Path, count: int) -> list[SoundJob]:
    """`count` sounds of each prompt, with the seeds SEED, SEED + 1, …, in NAME-1, NAME-2, … where there are several.
    NAME is the prompt's `out`, in `folder`, or the number of its line.

    Raises:
        ValueError: a file has an unknown format, is also an input, belongs to two sounds, or a line of a file of
            prompts names one outside `folder`; all such files are named.
    """
    jobs, wrong = [], []
    owners: dict[Path, SoundJob] = {}
    for line, prompt in prompts:
        out = folder / (prompt.out or f"{line:04d}.wav")
        for i in range(count):
            path = out if count == 1 else out.with_stem(f"{out.stem}-{i + 1}")
            job = SoundJob(replace(prompt, seed=prompt.seed + i), path, line)
            try:
                if line is not None:
                    _check_inside(path, folder)
                _check_out(job, owners.setdefault(path.absolute(), job))
                jobs.append(job)
            except OSError as error:  # a name that is too long, or a folder that may not be read
                wrong.append(f"{job.location}out: {str(path)[:80]}: {error.strerror}")
                break
            except ValueError as error:
                wrong.append(f"{job.location}{error}")
                break
    if wrong:
        raise ValueError(complaint_list(wrong))
    return jobs


def _check_inside(path: Path, folder: Path) -> None:
    """A file of prompts may come from anyone, and decides about no other folder than the one for its sounds."""
    if ".." in path.parts[len(folder.parts) :] or not path.absolute().is_relative_to(folder.absolute()):
        raise ValueError(f"out: {path} is outside {folder}; give a name in that folder, without '..'")


def _check_out(job: SoundJob, owner: SoundJob) -> None:
    if owner is not job:
        raise ValueError(f"out: {job.out} is also the file of {owner.location.rstrip(': ')}; give each its own name")
    inputs = [Path(path) for name in PATH_FIELDS if (path := getattr(job.prompt, name))]
    if job.out.exists() and any(job.out.samefile(path) for path in inputs):
        raise ValueError(f"out: {job.out} is an input of this sound; choose another name")
    if job.out.is_dir():
        raise ValueError(f"out: {job.out} is a folder; give the name of a file")
    check_writable(job.out, Path(job.prompt.video) if job.prompt.video else None)


def create_folders(jobs: Sequence[SoundJob]) -> None:
    """Create the folders of all sounds. Raises ValueError where one cannot be created or written to, so that a run
    fails at once and not after its first sound."""
    for folder in {job.out.parent for job in jobs}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass
        except OSError as error:
            why = "a file, not a folder" if folder.is_file() else str(error.strerror).lower()
            raise ValueError(f"out: no sound can be written to {folder} ({why}); give another") from None
