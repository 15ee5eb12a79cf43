"""Which file each sound goes to; imports nothing that takes time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile

from ..core.english import complaint_list
from ..media.mux import check_writable
from .prompts import PATHS, Prompt


@dataclass(frozen=True)
class Job:
    """A sound and the file that it goes to."""

    prompt: Prompt
    out: Path
    line: int | None = None  # in a file of prompts

    @property
    def where(self) -> str:
        return "" if self.line is None else f"line {self.line}: "


def jobs_of(prompts: Sequence[tuple[int | None, Prompt]], folder: Path, count: int) -> list[Job]:
    """`count` sounds of each prompt, with the seeds SEED, SEED + 1, …, in NAME-1, NAME-2, … where there are several;
    NAME is the prompt's `out`, in `folder`, or the number of its line.

    Raises:
        ValueError: a file cannot be written as it is named, is one that is read, or has two sounds; all are named.
    """
    jobs, wrong = [], []
    taken: dict[Path, Job] = {}
    for line, prompt in prompts:
        out = folder / (prompt.out or f"{line:04d}.wav")
        for i in range(count):
            path = out if count == 1 else out.with_stem(f"{out.stem}-{i + 1}")
            job = Job(replace(prompt, seed=prompt.seed + i), path, line)
            try:
                _check_out(job, taken.setdefault(path.absolute(), job))
                jobs.append(job)
            except ValueError as error:
                wrong.append(f"{job.where}{error}")
                break
    if wrong:
        raise ValueError(complaint_list(wrong))
    return jobs


def _check_out(job: Job, owner: Job) -> None:
    if owner is not job:
        raise ValueError(f"out: {job.out} is that of {owner.where.rstrip(': ')} as well; give each a name of its own")
    given = [Path(path) for name in PATHS if (path := getattr(job.prompt, name))]
    if job.out.exists() and any(job.out.samefile(path) for path in given):
        raise ValueError(f"out: {job.out} is a file that the sound is made from; choose another name")
    if job.out.is_dir():
        raise ValueError(f"out: {job.out} is a folder; give the name of a file")
    check_writable(job.out, Path(job.prompt.video) if job.prompt.video else None)


def make_folders(jobs: Sequence[Job]) -> None:
    """Those that the sounds go to. Raises ValueError where one cannot be made or written to: now, and not when the
    first sound is finished."""
    for folder in {job.out.parent for job in jobs}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass
        except OSError as error:
            why = "a file, no folder" if folder.is_file() else str(error.strerror).lower()
            raise ValueError(f"out: no sound can be written to {folder} ({why}); give another") from None
