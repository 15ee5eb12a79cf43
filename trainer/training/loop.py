"""The training loop of pretraining and distillation: fetch, step, log, save, resume."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

from torch import Tensor

from ..checkpoint import load, rollback
from ..checkpoint.load import TrainedModel
from ..checkpoint.save import NotFiniteError, Saver
from ..core.config import BaseConfig
from ..data.batches import Batch
from ..data.prefetch import Prefetcher
from ..engine.compilation import compilation_warnings
from ..engine.zero import World
from ..resilience.stop_signal import StoppedError, StopSignal
from ..resilience.watchdog import Watchdog
from . import run_folder
from .health import DivergedError, Health, StepResult
from .logs import Logs
from .meter import Pace
from .previews import Previews

ROLLBACKS = 1  # times that a run goes back by itself


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


class Trainer(Protocol):
    """A training method, `Pretraining` or `Distillation`. All ranks make the same calls."""

    bar_metrics: tuple[str, ...]  # the values in the progress bar
    roles: dict[str, TrainedModel]
    total: int  # steps of the whole run
    previews: Previews

    def step(self, step: int, batch: Batch) -> StepResult: ...

    def kind(self, step: int) -> str:
        """The kind of a step. The first of each kind compiles and may take longer."""
        ...

    def can_checkpoint_after(self, step: int) -> bool: ...

    def metrics(self) -> dict[str, float]: ...

    def warnings(self, values: dict[str, float]) -> list[str]:
        """Warnings about these values, in plain words."""
        ...

    def preview(self) -> tuple[list[str], Tensor]:
        """Names and waves (B, channels, samples) sampled from the current EMA weights."""
        ...


class BatchSource(Protocol):
    def batches(self, start: int) -> Iterator[Batch]:
        """This rank's batches from step `start` on, without end."""
        ...


def train(
    trainer: Trainer,
    reader: BatchSource,
    config: BaseConfig,
    world: World,
    output: Path,
    resume: bool,
    peak: float,
    metadata: dict[str, Any],
    watchdog: Watchdog | None = None,
    from_step: int | None = None,
) -> None:
    """Runs `trainer` from the state of its folder, or from its checkpoint of `from_step`, to its end. `peak` is the
    FLOP/s of all ranks together, for MFU; `metadata` goes into every checkpoint's manifest.

    Raises StoppedError when the run was asked to stop before its end and has saved; ValueError where another run uses
    the folder.
    """
    watchdog = watchdog or Watchdog(config.timeouts)  # one that is not started, and watches nothing
    steps, every = trainer.total, config.logging.every
    with run_folder.lock(output, resume, world.rank), ExitStack() as contexts:
        settings = run_folder.save_settings(output, config)
        progress = restore(trainer, output, resume, world, *settings, from_step=from_step)
        start = progress.step
        trainer.previews.load()
        metadata = metadata | {"shards": run_folder.indexes(config)}
        if world.rank == 0:
            run_folder.write_config(output, config, metadata.get("init"))
        stop = contexts.enter_context(StopSignal())
        keep = from_step is not None
        logs = contexts.enter_context(Logs(output, world.rank == 0, start, steps, output.name, keep))
        retention = config.checkpoint.keep_last, config.checkpoint.keep_every
        saver = contexts.enter_context(Saver(output, trainer.roles, metadata, *retention))
        batches = contexts.enter_context(Prefetcher(reader.batches(start + progress.skipped_batches), world.device))
        contexts.push(watchdog.failing)
        health, kinds, step = Health(config.training.max_skipped_steps, progress.losses), set[str](), start
        pace = Pace(config.training.global_batch, peak)
        checkpoints = _Checkpoints(trainer, config, saver, stop, watchdog, logs)
        while step < steps:
            kind = trainer.kind(step)
            watchdog.enter("step" if kind in kinds else "first step", step)
            kinds.add(kind)
            batch = next(batches)
            result = trainer.step(step, batch)
            done = step + 1
            try:
                if skipped := health.step(kind, result, step, batch):
                    logs.say(skipped)
                logs.advance()
                pace.step(result.flops_per_sample)
                if done % every == 0 or done == steps:
                    _log(done, trainer, result, pace.read(batches.waited_since()), health, config, logs)
                if config.logging.preview_every and (done % config.logging.preview_every == 0 or done == steps):
                    watchdog.enter("sounds of step", done)
                    logs.sounds(done, *trainer.preview(), config.model.codec.sample_rate)
                checkpoints.save_if_due(done, progress, health)
            except (DivergedError, NotFiniteError) as error:
                watchdog.enter("going back from step", done)
                progress = go_back(error, progress, done, health.confirmed, trainer, output, world, saver, logs)
                health, done = Health(config.training.max_skipped_steps, progress.losses), progress.step
                checkpoints.due = False
            step = done


def _log(
    done: int,
    trainer: Trainer,
    result: StepResult,
    pace: dict[str, float],
    health: Health,
    config: BaseConfig,
    logs: Logs,
) -> None:
    values = trainer.metrics() | result.values | pace
    logs.metrics(done, values, trainer.bar_metrics)
    compilation = compilation_warnings() if config.training.compile else []
    for warning in (*trainer.warnings(values), *compilation, *health.spikes()):
        logs.say(f"step {done}: {warning}")


class _Checkpoints:
    """Writes a checkpoint at the end of a step if one is due, the run is asked to stop, or it is the last step."""

    def __init__(
        self, trainer: Trainer, config: BaseConfig, saver: Saver, stop: StopSignal, watchdog: Watchdog, logs: Logs
    ) -> None:
        self.trainer, self.settings, self.saver = trainer, config.checkpoint, saver
        self.stop, self.watchdog, self.logs = stop, watchdog, logs
        self.due = False  # also after a step that cannot be saved: it stays so until one can

    def save_if_due(self, done: int, progress: Progress, health: Health) -> None:
        """Raises StoppedError once the state is saved, if the run was asked to stop before its last step."""
        stopping, writing = self.stop.agree(self.saver.is_writing)
        last = done == self.trainer.total
        self.due = self.due or stopping or done % self.settings.every == 0 or last
        saves = self.due and self.trainer.can_checkpoint_after(done - 1)
        if self.saver.pending and (saves or not writing):
            self.watchdog.enter("saving step", done)
            self.logs.say(self.saver.finish())
        if not saves:
            return
        self.watchdog.enter("saving step", done)
        waits = stopping or last or not self.settings.async_save
        summary = health.summarize_and_reset()
        self.saver.begin(done, not waits, progress.to_manifest() | summary)
        if not summary["healthy"]:
            self.logs.say(f"step {done}: this checkpoint is not healthy; the last healthy ones are kept too")
        if waits:
            self.logs.say(self.saver.finish())
        self.due = False
        if stopping and not last:
            raise StoppedError(f"asked to stop: step {done} of {self.trainer.total} is saved; continue with --resume")


def go_back(
    error: FloatingPointError,
    progress: Progress,
    done: int,
    confirmed: bool,
    trainer: Trainer,
    output: Path,
    world: World,
    saver: Saver,
    logs: Logs,
) -> Progress:
    """After `done` steps training has diverged: loads the last healthy checkpoint. Its steps will take the batches that
    come next, so those since the checkpoint are skipped. `confirmed`: a step from that checkpoint was finite.

    Raises DivergedError if there is no healthy checkpoint, or the run has gone back before.
    """
    if saver.pending:
        logs.say(saver.finish())
    folder = rollback.last_healthy(output, logs.say, confirmed)
    if folder is None:
        raise DivergedError(f"{error}. No healthy checkpoint was saved before") from error
    step = load.step_of(folder)
    if progress.rollbacks >= ROLLBACKS:
        raise DivergedError(
            f"{error}. The run has gone back by itself before and diverges again. The last healthy checkpoint is that "
            f"of step {step}: continue there with --resume --from {step}"
        ) from error
    logs.say(f"training diverged: {error}")
    former = Progress.from_manifest(load.load(folder, trainer.roles))
    aside = rollback.set_aside_later(output, step, world.rank)
    trainer.metrics()  # which resets them
    skipped = progress.skipped_batches + done - step
    logs.go_back(step, done, skipped)
    logs.say(
        f"went back to the last healthy checkpoint, that of step {step}: the {done - step} batches since then are "
        f"skipped; {aside}"
    )
    return replace(former, skipped_batches=skipped, rollbacks=progress.rollbacks + 1)


def restore(
    trainer: Trainer,
    output: Path,
    resume: bool,
    world: World,
    every: int,
    async_save: bool,
    from_step: int | None = None,
) -> Progress:
    """Loads the newest intact checkpoint, or the one of `from_step`, and returns how far it is: step 0 in a folder
    without checkpoints.

    `every` and `async_save` are the settings that the run saved with. Raises NoUsableCheckpointError where checkpoints
    were saved and none can be loaded, CheckpointError where that of `from_step` cannot.
    """

    def report(text: str) -> None:
        if world.rank == 0:
            print(text, flush=True)

    if not resume:
        return Progress()
    folder = load.newest_intact(output, report) if from_step is None else rollback.checkpoint_of(output, from_step)
    if folder is None:
        run_folder.check_no_checkpoint_lost(output, _first_save_done_by(trainer, every, async_save))
        report(f"{output} has no checkpoint yet: starting at step 0")
        return Progress()
    progress = Progress.from_manifest(load.load(folder, trainer.roles))
    report(f"resumed from {folder} at step {progress.step}")
    if from_step is not None:
        report(rollback.set_aside_later(output, from_step, world.rank, asked=True))
    return progress


def _first_save_done_by(trainer: Trainer, every: int, async_save: bool) -> int:
    """The step at whose end the first checkpoint is surely there. A save in the background may last until the second
    one begins."""
    done = 0
    for _ in range(2 if async_save else 1):
        due = (done // every + 1) * every
        done = 1 + next(step for step in itertools.count(due - 1) if trainer.can_checkpoint_after(step))
    return done
