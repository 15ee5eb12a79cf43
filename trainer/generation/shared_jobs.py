"""Make the sounds of many prompts on any number of ranks, which may be killed and started again at any time.

    FOLDER/manifest.jsonl            a line for each sound, when all are there or have failed
    FOLDER/work/made/00003.jsonl     the lines of rank 3 until then
    FOLDER/work/failed/7.wav.txt     why the sound 7.wav could not be made, at the last attempt

All ranks cut the same batches, the longest first, and of N ranks each makes every N-th. So none has to know of another.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from ..core.english import amount, complaint_list
from ..core.files import write_text
from ..resilience.stop_signal import StoppedError, StopSignal
from ..workers.progress import Progress
from .generator import Generator
from .job_runner import RunSummary, SoundManifest, job_batches, run_jobs
from .output_files import SoundJob

FAILED = "work/failed"  # of the folder


def make_on_ranks(
    generator: Generator, jobs: Sequence[SoundJob], batch: int, folder: Path, rank: int, ranks: int
) -> str:
    """Make this rank's share of the sounds that are not in `folder` yet; returns what it did, as a line.

    Raises ValueError where a file exists that was made from something else, and on the rank that ends last where sounds
    have failed (a launcher ends the others when one fails); StoppedError where the process was asked to stop. The same
    command continues.
    """
    manifest = SoundManifest(folder, generator.origin, generator.sampling, generator.adapters, rank)
    manifest.unfinished(jobs)  # refuses what is there from something else
    own = job_batches(generator, jobs, batch)[rank::ranks]
    made = RunSummary()
    for job in (job for block in own for job in block):
        _note(folder, job).unlink(missing_ok=True)  # tried again
    with Progress(sum(map(len, own)), 0) as progress, StopSignal() as stop:
        for block in own:
            if stop.requested:
                raise StoppedError(f"asked to stop; finished sounds stay in {folder}, and the same command continues")
            part = run_jobs(generator, manifest.unfinished(block), batch, manifest, show=False)
            made.add(part)
            for job, error in part.failures:
                write_text(_note(folder, job), f"{job.location}{error}")
            progress.add(len(block), part.sounds)
    missing = [job for job in jobs if not job.out.exists()]
    failures = [note.read_text() for job in missing if (note := _note(folder, job)).exists()]
    if len(failures) == len(missing):  # so nobody is making any
        manifest.compact()
        if failures:
            raise ValueError(complaint_list(failures, f"{len(failures)} of {len(jobs)} sounds failed"))
        shutil.rmtree(folder / FAILED, ignore_errors=True)  # another rank may do so too
    said = f"rank {rank} made {amount(made.sounds, 'sound')}, {made.seconds:.1f} s in {made.elapsed:.1f} s"
    said += f" ({made.speed})" + (f", and could not make {len(made.failures)}" if made.failures else "")
    return said if missing else f"{said}; all {len(jobs)} are there"


def _note(folder: Path, job: SoundJob) -> Path:
    return folder / FAILED / f"{job.out.relative_to(folder)}.txt"
