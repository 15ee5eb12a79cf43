"""A run's checkpoints, copies on the nodes, and way back: what the training loop saves, resumes from and returns to."""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import torch.distributed as dist

from ..checkpoint import load, rollback
from ..checkpoint.load import TrainedModel
from ..checkpoint.local_copies import LocalCopies, Nodes
from ..checkpoint.save import Saver
from ..core.config import BaseConfig, CheckpointConfig
from ..engine.process_group import World
from ..resilience.rank_names import node_name
from ..resilience.stop_signal import StoppedError, StopSignal
from ..resilience.watchdog import Watchdog
from . import run_folder
from .health import DivergedError, Health
from .logs import Logs
from .rank_checks import RankChecks

ROLLBACKS = 1  # times that a run goes back by itself


class SavedTrainer(Protocol):
    """What is saved of a training."""

    roles: dict[str, TrainedModel]
    total: int  # steps of the whole run

    def can_checkpoint_after(self, step: int) -> bool: ...

    def metrics(self) -> dict[str, float]:
        """The values since the last call."""
        ...


@dataclass(frozen=True)
class Progress:
    """The position of a run. Every checkpoint's manifest has it."""

    step: int = 0
    skipped_batches: int = 0  # by rollbacks: step s takes batch number s + skipped_batches
    rollbacks: int = 0  # times that the run went back by itself
    losses: dict[str, float] = field(default_factory=dict)  # means before the checkpoint, if that is healthy

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any]) -> Self:
        losses = manifest.get("losses", {}) if manifest.get("healthy") else {}
        return cls(manifest["step"], manifest.get("skipped_batches", 0), manifest.get("rollbacks", 0), losses)

    def to_manifest(self) -> dict[str, int]:
        return {"skipped_batches": self.skipped_batches, "rollbacks": self.rollbacks}


class Checkpoints:
    """Writes a checkpoint at the end of a step if one is due, the run is asked to stop, or it is the last step; and
    copies on the nodes in between."""

    def __init__(
        self,
        trainer: SavedTrainer,
        config: BaseConfig,
        output: Path,
        saver: Saver,
        copies: LocalCopies | None,
        stop: StopSignal,
        watchdog: Watchdog,
        logs: Logs,
        checks: RankChecks,
        progress: Progress,
    ) -> None:
        """`progress`: where the run begins."""
        self.trainer, self.settings, self.output = trainer, config.checkpoint, output
        self.saver, self.copies = saver, copies
        self.stop, self.watchdog, self.logs, self.checks = stop, watchdog, logs, checks
        self.progress = progress  # at the start, or where the run went back to
        # Also after a step that cannot be saved: they stay so until one can.
        self.due, self.copy_due = False, False
        self.validation: tuple[int, float] | None = None  # the last steps that were validated, and their loss
        self.score: tuple[int, dict[str, Any]] | None = None  # the last steps whose sounds were judged, and their score

    def validated(self, done: int, loss: float) -> None:
        """A checkpoint after `done` steps has this loss on held-out samples; none that is not a number, which JSON does
        not have."""
        self.validation = (done, loss) if math.isfinite(loss) else None

    def scored(self, done: int, score: dict[str, Any]) -> None:
        """A checkpoint after `done` steps has this score."""
        self.score = done, score

    def save_if_due(self, done: int, health: Health) -> None:
        """Raises StoppedError once the state is saved, if the run was asked to stop before its last step, and
        FaultyError instead of saving if a rank has wrong weights or results."""
        stopping, writing = self.stop.agree(
            self.saver.is_writing or (self.copies is not None and self.copies.is_writing)
        )
        last, possible = done == self.trainer.total, self.trainer.can_checkpoint_after(done - 1)
        self.due = self.due or stopping or done % self.settings.every == 0 or last
        self.copy_due = self.copies is not None and (self.copy_due or done % self.settings.local_every == 0)
        if self.due and possible:
            self._finish(done)
            self._save(done, health, waits=stopping or last or not self.settings.async_save)
            self.due, self.copy_due = False, False
        elif not writing:
            self._finish(done)
            if self.copies and self.copy_due and possible:
                self._copy(done, health, self.copies)
                self.copy_due = False
        if stopping and possible and not last:
            raise StoppedError(f"asked to stop: step {done} of {self.trainer.total} is saved; continue with --resume")

    def _finish(self, done: int) -> None:
        """Completes what was written in the background."""
        if self.saver.pending:
            self.watchdog.enter("saving step", done)
            self.logs.say(self.saver.finish())
        if self.copies and self.copies.pending:
            self.watchdog.enter("copying step", done)
            with self._copies_may_fail(done):
                self.copies.finish()

    def _save(self, done: int, health: Health, waits: bool) -> None:
        self.watchdog.enter("saving step", done)
        self.checks.compare_now(done)
        summary = health.summarize_and_reset()
        if self.validation and self.validation[0] == done:
            summary[load.VALIDATION] = self.validation[1]
        if self.score and self.score[0] == done:
            summary[load.SCORE] = self.score[1]
        self.saver.begin(done, not waits, self.progress.to_manifest() | summary)
        if not summary["healthy"]:
            self.logs.say(f"step {done}: this checkpoint is not healthy; the last healthy ones are kept too")
        if waits:
            self.logs.say(self.saver.finish())

    def _copy(self, done: int, health: Health, copies: LocalCopies) -> None:
        self.watchdog.enter("copying step", done)
        self.checks.compare_now(done)
        with self._copies_may_fail(done):
            state = self.progress.to_manifest() | {"healthy": True, "losses": health.baseline}
            copies.begin(done, self.settings.async_save, state)
            if not self.settings.async_save:
                copies.finish()

    def go_back(self, error: FloatingPointError, done: int, confirmed: bool) -> int:
        """After `done` steps training has diverged: loads the last healthy checkpoint, and returns its step. The steps
        after it will take the batches that come next, so those since the checkpoint are skipped. `confirmed`: a step
        from that checkpoint was finite.

        Raises DivergedError if there is no healthy checkpoint, or the run has gone back before.
        """
        if self.saver.pending:
            self.logs.say(self.saver.finish())
        folder = rollback.last_healthy(self.output, self.logs.say, confirmed)
        if folder is None:
            raise DivergedError(f"{error}. No healthy checkpoint was saved before") from error
        step = load.step_of(folder)
        if self.progress.rollbacks >= ROLLBACKS:
            raise DivergedError(
                f"{error}. The run has gone back by itself before and diverges again. The last healthy checkpoint is "
                f"that of step {step}: continue there with --resume --from {step}"
            ) from error
        self.logs.say(f"training diverged: {error}")
        former = Progress.from_manifest(load.load(folder, self.trainer.roles))
        aside = rollback.set_aside_later(self.output, step, dist.get_rank())
        self.trainer.metrics()  # which resets them
        skipped, rollbacks = self.progress.skipped_batches + done - step, self.progress.rollbacks + 1
        self.progress = replace(former, skipped_batches=skipped, rollbacks=rollbacks)
        self.logs.go_back(step, done, skipped)
        self.logs.say(
            f"went back to the last healthy checkpoint, that of step {step}: the {done - step} batches since then are "
            f"skipped; {aside}"
        )
        self.due, self.copy_due = False, False
        if self.copies:
            with self._copies_may_fail(step):
                self.copies.begin_anew()
        return step

    @contextmanager
    def _copies_may_fail(self, done: int) -> Iterator[None]:
        """Training goes on without a copy."""
        try:
            yield
        except load.DeviceLostError:
            raise
        except OSError as error:
            self.logs.say(f"step {done}: no copy on the nodes: {error}; checkpoints are not concerned")


def open_copies(settings: CheckpointConfig, output: Path, trainer: SavedTrainer) -> LocalCopies | None:
    """The run's copies on the nodes, if it makes any."""
    if not settings.local_every:
        return None
    return LocalCopies(Path(settings.local_folder), output, Nodes(node_name()), trainer.roles)


def restore(
    trainer: SavedTrainer,
    output: Path,
    resume: bool,
    world: World,
    every: int,
    async_save: bool,
    from_step: int | None = None,
    copies: LocalCopies | None = None,
) -> Progress:
    """Loads newer copies on the nodes, the newest intact checkpoint, or the one of `from_step`, and returns how far it
    is: step 0 in a folder without any.

    `every` and `async_save` are the settings that the run saved with. Raises NoUsableCheckpointError where checkpoints
    were saved and none can be loaded, CheckpointError where that of `from_step` cannot.
    """

    def report(text: str) -> None:
        if world.rank == 0:
            print(text, flush=True)

    if not resume:
        return Progress()
    folder = None
    if from_step is not None:
        folder = rollback.checkpoint_of(output, from_step)
    elif copies:
        try:
            folder = copies.collect(after=load.newest_step(output))
        except OSError as error:
            report(f"the copies on the nodes cannot be used: {error}")
    folder = folder or load.newest_intact(output, report)
    if folder is None:
        run_folder.check_no_checkpoint_lost(output, _first_save_done_by(trainer, every, async_save))
        report(f"{output} has no checkpoint yet: starting at step 0")
        return Progress()
    progress = Progress.from_manifest(load.load(folder, trainer.roles))
    report(f"resumed from {folder} at step {progress.step}")
    if from_step is not None:
        report(rollback.set_aside_later(output, from_step, world.rank, asked=True))
        if copies:
            copies.begin_anew()
    return progress


def _first_save_done_by(trainer: SavedTrainer, every: int, async_save: bool) -> int:
    """The step at whose end the first checkpoint is surely there. A save in the background may last until the second
    one begins."""
    done = 0
    for _ in range(2 if async_save else 1):
        due = (done // every + 1) * every
        done = 1 + next(step for step in itertools.count(due - 1) if trainer.can_checkpoint_after(step))
    return done
