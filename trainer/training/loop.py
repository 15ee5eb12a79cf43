"""The training loop of pretraining and distillation: fetch, step, log, save."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..checkpoint.save import NotFiniteError, Saver
from ..core.config import BaseConfig
from ..data.batches import Batch
from ..data.prefetch import Prefetcher
from ..engine.compilation import compilation_warnings
from ..engine.meter import Pace
from ..engine.process_group import World
from ..resilience.stop_signal import StopSignal
from ..resilience.watchdog import Watchdog
from . import run_folder
from .health import DivergedError, Health, StepResult
from .logs import Logs
from .previews import Previews, PromptSampler
from .rank_checks import CheckedTrainer, RankChecks
from .save_and_resume import Checkpoints, SavedTrainer, open_copies, restore
from .scores import Scores
from .trackers import open_trackers
from .validation import LOSS, Validation


class Trainer(CheckedTrainer, SavedTrainer, Protocol):
    """A training method, `Pretraining` or `Distillation`. All ranks make the same calls."""

    bar_metrics: tuple[str, ...]  # the values in the progress bar
    previews: Previews

    def step(self, step: int, batch: Batch) -> StepResult: ...

    def kind(self, step: int) -> str:
        """The kind of a step. The first of each kind compiles and may take longer."""
        ...

    def warnings(self, values: dict[str, float]) -> list[str]:
        """Warnings about these values, in plain words."""
        ...

    def sample(self, sampler: PromptSampler) -> Tensor:
        """Latents (B, L, C) for the texts of a sampler, by the current EMA weights."""
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
    validation: Validation | None = None,
    scores: Scores | None = None,
) -> None:
    """Runs `trainer` from the state of its folder, or from its checkpoint of `from_step`, to its end. `peak` is the
    FLOP/s of all ranks together, for MFU; `metadata` goes into every checkpoint's manifest.

    Raises StoppedError when the run was asked to stop before its end and has saved; ValueError where another run uses
    the folder.
    """
    watchdog = watchdog or Watchdog(config.timeouts)  # one that is not started, and watches nothing
    with run_folder.lock(output, resume, world.rank), ExitStack() as contexts:
        settings = run_folder.save_settings(output, config)
        copies = open_copies(config.checkpoint, output, trainer)
        progress = restore(trainer, output, resume, world, *settings, from_step=from_step, copies=copies)
        start = progress.step
        trainer.previews.load()
        if scores:
            scores.load(start)
        metadata = metadata | {"shards": run_folder.indexes(config)}
        if world.rank == 0:
            run_folder.write_config(output, config, metadata.get("init"))
        stop = contexts.enter_context(StopSignal())
        keep = from_step is not None
        trackers = open_trackers(config, output) if world.rank == 0 else []
        logs = contexts.enter_context(Logs(output, world.rank == 0, start, trainer.total, output.name, keep, trackers))
        retention = config.checkpoint.keep_last, config.checkpoint.keep_every
        saver = contexts.enter_context(Saver(output, trainer.roles, metadata, *retention))
        if copies:
            contexts.enter_context(copies)
            copies.metadata = metadata
        checks = contexts.enter_context(RankChecks(config.checks, trainer, world, logs.say))
        # Its thread may open shards, for which all ranks meet: nothing else may meet until the first batch is there.
        batches = contexts.enter_context(Prefetcher(reader.batches(start + progress.skipped_batches), world.device))
        contexts.push(watchdog.failing)
        checkpoints = Checkpoints(trainer, config, output, saver, copies, stop, watchdog, logs, checks, progress)
        measurements = validation, scores
        _Loop(trainer, config, world, watchdog, logs, checks, checkpoints, batches, peak, *measurements).run()
        if copies:
            copies.remove()


class _Loop:
    """The steps of a run, from where `checkpoints` has it."""

    def __init__(
        self,
        trainer: Trainer,
        config: BaseConfig,
        world: World,
        watchdog: Watchdog,
        logs: Logs,
        checks: RankChecks,
        checkpoints: Checkpoints,
        batches: Prefetcher,
        peak: float,
        validation: Validation | None,
        scores: Scores | None,
    ) -> None:
        self.trainer, self.config, self.world, self.watchdog = trainer, config, world, watchdog
        self.logs, self.checks, self.checkpoints, self.batches = logs, checks, checkpoints, batches
        self.validation, self.scores = validation, scores
        self.pace, self.kinds = Pace(config.training.global_batch, peak), set[str]()
        self.health = self._new_health()

    def _new_health(self) -> Health:
        return Health(self.config.training.max_skipped_steps, self.checkpoints.progress.losses)

    def run(self) -> None:
        step = self.checkpoints.progress.step
        while step < self.trainer.total:
            kind = self.trainer.kind(step)
            batch, result = self._step(step, kind)
            step += 1
            try:
                self._record(step, kind, batch, result)
                self.checkpoints.save_if_due(step, self.health)
            except (DivergedError, NotFiniteError) as error:
                self.watchdog.enter("going back from step", step)
                self.checks.compare_now(step)  # a rank with wrong weights may be why
                step = self.checkpoints.go_back(error, step, self.health.confirmed)
                self.health = self._new_health()
                if self.scores:
                    self.scores.load(step)  # the best may have been set aside

    def _step(self, step: int, kind: str) -> tuple[Batch, StepResult]:
        self.watchdog.enter("step" if kind in self.kinds else "first step", step)
        self.kinds.add(kind)
        with self.world.times("data"):
            batch = next(self.batches)
        self.checks.before(step, batch)
        result = self.trainer.step(step, batch)
        self.checks.after(step + 1, result.applied)
        return batch, result

    def _record(self, done: int, kind: str, batch: Batch, result: StepResult) -> None:
        """Logs a step, the last of `done`. Raises DivergedError where too many in a row were skipped."""
        if skipped := self.health.step(kind, result, done - 1, batch):
            self.logs.say(skipped)
        self.logs.advance()
        self.pace.step(result.flops_per_sample)
        logging, last = self.config.logging, done == self.trainer.total
        measured = self._validate(done) | self._score(done, last)
        if done % logging.every == 0 or last or measured:
            self._log(done, result, measured)
        if logging.preview_every and (done % logging.preview_every == 0 or last):
            self.watchdog.enter("sounds of step", done)
            self.logs.sounds(done, *self.trainer.preview(), self.config.model.codec.sample_rate)

    def _validate(self, done: int) -> dict[str, float]:
        """Losses on held-out samples, if they are due."""
        if self.validation is None or not self.validation.is_due(done):
            return {}
        self.watchdog.enter("validation after step", done)
        losses = self.validation.losses()
        self.checkpoints.validated(done, losses[LOSS])
        return losses

    def _score(self, done: int, last: bool) -> dict[str, float]:
        """What scorers say about sounds for fixed prompts, if that is due."""
        if self.scores is None or not self.scores.is_due(done, last, self.trainer.can_checkpoint_after(done - 1)):
            return {}
        self.watchdog.enter("sounds of step", done)
        values, problem = self.scores.measure(self.trainer.sample)
        score, warning = self.scores.judge(done, values)
        if score:
            self.checkpoints.scored(done, vars(score))
        if sentence := problem or warning:
            self.logs.say(f"step {done}: {sentence}")
        return values

    def _log(self, done: int, result: StepResult, measured: dict[str, float]) -> None:
        speeds = self.pace.read(self.batches.waited_since()) | self.checks.metrics()
        values = self.trainer.metrics() | result.values | measured | speeds
        self.logs.metrics(done, values, self.trainer.bar_metrics)
        compilation = compilation_warnings() if self.config.training.compile else []
        for warning in (*self.trainer.warnings(values), *compilation, *self.health.spikes()):
            self.logs.say(f"step {done}: {warning}")
