"""The training loop of pretraining and distillation: fetch, step, log, save, resume."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..checkpoint import load
from ..checkpoint.load import TrainedModel
from ..checkpoint.save import Saver
from ..core.config import BaseConfig
from ..data.batches import Batch
from ..data.prefetch import Prefetcher
from ..engine.compilation import compilation_warnings
from ..engine.zero import World
from ..resilience.stop_signal import StoppedError, StopSignal
from ..resilience.watchdog import Watchdog
from . import run_folder
from .logs import Logs
from .meter import Pace
from .previews import Previews


@dataclass(frozen=True)
class StepResult:
    """What the loop needs to know of a training step."""

    role: str  # which model was trained
    applied: bool  # false where a gradient was not finite and the weights were not updated
    values: dict[str, float]
    flops_per_sample: int


class Trainer(Protocol):
    """A training method, `Pretraining` or `Distillation`. All ranks make the same calls."""

    shown: tuple[str, ...]  # the values in the progress bar
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
        """What a person should know about these values, in plain words."""
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
) -> None:
    """Runs `trainer` from the state of its folder to its end. `peak` is the FLOP/s of all ranks together, for MFU;
    `metadata` goes into every checkpoint's manifest.

    Raises StoppedError when the run was asked to stop before its end and has saved; ValueError where another run uses
    the folder.
    """
    watchdog = watchdog or Watchdog(config.timeouts)  # one that is not started, and watches nothing
    steps, every = trainer.total, config.logging.every
    with run_folder.exclusive(output, resume, world.rank), ExitStack() as contexts:
        start = restore(trainer, output, resume, world, *run_folder.save_settings(output, config))
        trainer.previews.load()
        metadata = metadata | {"shards": run_folder.indexes(config)}
        if world.rank == 0:
            run_folder.write_config(output, config)
        stop = contexts.enter_context(StopSignal())
        logs = contexts.enter_context(Logs(output, world.rank == 0, start, steps, output.name))
        retention = config.checkpoint.keep_last, config.checkpoint.keep_every
        saver = contexts.enter_context(Saver(output, trainer.roles, metadata, *retention))
        batches = contexts.enter_context(Prefetcher(reader.batches(start), world.device))
        contexts.push(watchdog.failing)
        skipped, kinds, due = dict.fromkeys(trainer.roles, 0), set[str](), False
        pace = Pace(config.training.global_batch, peak)
        for step in range(start, steps):
            kind = trainer.kind(step)
            watchdog.enter("step" if kind in kinds else "first step", step)
            kinds.add(kind)
            batch = next(batches)
            result = trainer.step(step, batch)
            done = step + 1
            _count_skipped(skipped, result, step, batch, config.training.max_skipped_steps, logs)
            logs.advance()
            pace.step(result.flops_per_sample)
            if done % every == 0 or done == steps:
                values = trainer.metrics() | result.values | pace.read(batches.waited_since())
                logs.metrics(done, values, trainer.shown)
                compilation = compilation_warnings() if config.training.compile else []
                for warning in (*trainer.warnings(values), *compilation):
                    logs.say(f"step {done}: {warning}")
            if config.logging.preview_every and (done % config.logging.preview_every == 0 or done == steps):
                watchdog.enter("sounds of step", done)
                logs.sounds(done, *trainer.preview(), config.model.codec.sample_rate)
            stopping, writing = stop.agree(saver.is_writing)
            due = due or stopping or done % config.checkpoint.every == 0 or done == steps
            saves = due and trainer.can_checkpoint_after(step)
            if saver.pending and (saves or not writing):
                watchdog.enter("saving step", done)
                logs.say(saver.finish())
            if saves:
                watchdog.enter("saving step", done)
                waits = stopping or done == steps or not config.checkpoint.async_save
                saver.begin(done, in_background=not waits)
                if waits:
                    logs.say(saver.finish())
                due = False
                if stopping and done < steps:
                    raise StoppedError(f"asked to stop: step {done} of {steps} is saved; continue with --resume")


def restore(trainer: Trainer, output: Path, resume: bool, world: World, every: int, async_save: bool) -> int:
    """Loads the newest intact checkpoint and returns the step to continue at: 0 in a folder without checkpoints.

    `every` and `async_save` are the settings that the run saved with. Raises NothingLeftError where checkpoints were
    saved and none can be loaded.
    """

    def report(text: str) -> None:
        if world.rank == 0:
            print(text, flush=True)

    folder = load.newest_intact(output, report) if resume else None
    if folder is None:
        if resume:
            run_folder.check_no_checkpoint_lost(output, _first_save_done_by(trainer, every, async_save))
            report(f"{output} has no checkpoint yet: starting at step 0")
        return 0
    step = int(load.load(folder, trainer.roles)["step"])
    report(f"resumed from {folder} at step {step}")
    return step


def _first_save_done_by(trainer: Trainer, every: int, async_save: bool) -> int:
    """The step at whose end the first checkpoint is surely there. A save in the background may last until the second
    one begins."""
    done = 0
    for _ in range(2 if async_save else 1):
        due = (done // every + 1) * every
        done = 1 + next(step for step in itertools.count(due - 1) if trainer.can_checkpoint_after(step))
    return done


def _count_skipped(
    skipped: dict[str, int], result: StepResult, step: int, batch: Batch, limit: int, logs: Logs
) -> None:
    """Counts each role's consecutive non-finite steps. Raises FloatingPointError at `training.max_skipped_steps` of
    them."""
    if result.applied:
        skipped[result.role] = 0
        return
    skipped[result.role] += 1
    count, role = skipped[result.role], "" if result.role == "model" else f"{result.role}."
    logs.say(f"step {step}: the gradient is not finite on some rank; no rank updated its weights ({count} in a row)")
    if count >= limit:
        raise FloatingPointError(
            f"{limit} steps in a row, to step {step}, had a loss or gradient that is not finite; rank 0's last samples "
            f"were {', '.join(batch.ids[:8])}. The last checkpoint is intact: lower {role}optimizer.lr, or look at them"
        )
