"""Going back to an older checkpoint of a run. Nothing is deleted: later checkpoints are moved to `RUN/rolled_back/`.

A checkpoint is healthy if its manifest says so: the step before it was not skipped, and its losses were like those
before. Its own weights were not tried yet. Only a later finite step confirms them, so the last two are kept.
"""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.config_reader import read_json
from ..core.files import write_json
from ..core.integrity import ManifestError, read_manifest
from .fragment_files import CheckpointError
from .load import (
    find_fault_together,
    from_rank_0,
    list_checkpoints,
    on_all_ranks,
    step_folder,
    step_of,
    write_latest,
)

ROLLED_BACK = "rolled_back"
BATCH_JOB = "SLURM_JOB_ID"
DONE = "from.json"  # in that folder: the step that the last --from went back to, and in which batch job
COPIES = "local_copies.json"  # names the run's folder on the nodes
HEALTHY = 2  # healthy checkpoints that are always kept


def is_healthy(folder: Path) -> bool:
    try:
        return bool(read_manifest(folder).get("healthy", False))
    except ManifestError:
        return False


def check_has_step(run: Path, step: int) -> None:
    """Raises CheckpointError if the run has no checkpoint of this step."""
    if not step_folder(run, step).is_dir():
        steps = ", ".join(str(step_of(folder)) for folder in reversed(list_checkpoints(run))) or "none"
        aside = f", and later ones may be in {run / ROLLED_BACK}" if (run / ROLLED_BACK).is_dir() else ""
        raise CheckpointError(f"--from {step}: {run} has no checkpoint of this step; it has: {steps}{aside}")


def checkpoint_of(run: Path, step: int) -> Path:
    """The checkpoint of a step. Raises CheckpointError on all ranks if it is missing or damaged."""
    check_has_step(run, step)
    if fault := find_fault_together(step_folder(run, step)):
        raise CheckpointError(f"--from {step}: {fault}; give another step")
    return step_folder(run, step)


def last_healthy(run: Path, report: Callable[[str], None], confirmed: bool) -> Path | None:
    """The newest checkpoint that is healthy and intact, the same on all ranks. Unless it is `confirmed`, the one before
    is preferred."""
    healthy = from_rank_0(lambda: [checkpoint for checkpoint in list_checkpoints(run) if is_healthy(checkpoint)])
    if not confirmed:
        healthy = [*healthy[1:], *healthy[:1]]
    for folder in healthy:
        fault = find_fault_together(folder)
        if not fault:
            return folder
        report(f"skipped a damaged checkpoint: {fault}")
    return None


def asked_step(run: Path, step: int | None) -> int | None:
    """The step that --from asks for; None if this batch job has gone back to it already. A job that is requeued, or
    starts lost ranks again, does so with the same arguments."""
    done = run / ROLLED_BACK / DONE
    again = step is not None and BATCH_JOB in os.environ and done.exists() and read_json(done) == _asked(step)
    if again and os.environ.get("RANK", "0") == "0":
        print(f"--from {step}: this batch job has gone back to that step already; resuming from the newest", flush=True)
    return None if again else step


def _asked(step: int) -> dict[str, Any]:
    return {"step": step, "job": os.environ.get(BATCH_JOB, "")}


def set_aside_later(run: Path, step: int, rank: int, asked: bool = False) -> str:
    """Moves the checkpoints after this step to `RUN/rolled_back/`. Returns a sentence about it. All ranks call this.
    `asked`: by --from."""

    def act() -> str:
        if rank != 0:
            return ""
        sentence = _set_aside(run, step)
        if asked:
            write_json(run / ROLLED_BACK / DONE, _asked(step))
        return sentence

    return on_all_ranks(f"could not go back to step {step}", act)[0]


def _set_aside(run: Path, step: int) -> str:
    later = [folder for folder in list_checkpoints(run) if step_of(folder) > step]
    (run / ROLLED_BACK).mkdir(exist_ok=True)
    for folder in later:  # the newest first: if this ends half-way, none is left that is newer than those moved
        os.replace(folder, unused_name(run / ROLLED_BACK / folder.name))
    write_latest(run, step)
    (run / COPIES).unlink(missing_ok=True)  # later ones, on the nodes
    if not later:
        return "there is no later checkpoint"
    steps = ", ".join(str(step_of(folder)) for folder in reversed(later))
    return f"later checkpoints (step {steps}) are now in {run / ROLLED_BACK} and do not count; nothing is deleted"


def unused_name(path: Path) -> Path:
    """This path, with a number added if something has it already."""
    names = itertools.chain([path], (path.with_name(f"{path.name}.{number}") for number in itertools.count(2)))
    return next(name for name in names if not name.exists())
