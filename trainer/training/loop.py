"""The loop that pretraining and distillation share: fetch, step, log, save."""

import functools
import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...models.audiox import SamplingConfig
from ...models.encoders.base import AudioCodec
from ...models.encoders.build import build_codec, build_text_encoder
from ...models.sampler import sample
from ..checkpoint import load
from ..checkpoint.load import Role
from ..checkpoint.save import Saver
from ..core.config import BaseConfig
from ..data.batches import Batch, Conditions
from ..data.prefetch import Prefetcher
from ..engine.zero import World
from ..losses.guidance import Nothing, guided_velocity
from ..resilience.stop_signal import Stop, StoppedError
from ..resilience.watchdog import Watchdog
from . import run_folder
from .logs import Logs
from .meter import Pace


@dataclass(frozen=True)
class Step:
    """What a training step tells the loop."""

    role: str  # which was trained
    applied: bool  # false where a gradient was not finite and the weights stayed
    values: dict[str, float]
    flops_per_sample: int


class Task(Protocol):
    """What is trained."""

    shown: tuple[str, ...]  # values that stand in the progress bar
    roles: dict[str, Role]
    total: int  # steps of the whole run

    def step(self, step: int, batch: Batch) -> Step: ...

    def kind(self, step: int) -> str:
        """What a step does: the first of each kind compiles, and may take its time."""
        ...

    def rests(self, step: int) -> bool:
        """Whether a checkpoint may follow this step."""
        ...

    def metrics(self) -> dict[str, float]: ...

    def warnings(self, values: dict[str, float]) -> list[str]:
        """What a person should know of these values, in plain words."""
        ...

    previews: "Previews"

    def preview(self) -> tuple[list[str], Tensor]:
        """Names and waves (B, channels, samples) of what the EMA weights make now."""
        ...


class Batches(Protocol):
    """Where samples come from."""

    def batches(self, start: int) -> Iterator[Batch]: ...


def train(
    task: Task,
    reader: Batches,
    config: BaseConfig,
    world: World,
    output: Path,
    resume: bool,
    peak: float,
    about: dict[str, Any],
    watchdog: Watchdog | None = None,
) -> None:
    """Run `task` from where its folder stands to its end; `peak` is all ranks' FLOP/s, for MFU.

    Raises StoppedError when the run was asked to stop before its end, saved; ValueError where another run is at work in
    the folder.
    """
    watchdog = watchdog or Watchdog(config.timeouts)  # which nobody started, and watches nothing
    steps, every = task.total, config.logging.every
    with run_folder.alone(output, resume, world.rank), ExitStack() as entered:
        start = restore(task, output, resume, world, *run_folder.rhythm(output, config))
        task.previews.load()
        about = about | {"shards": run_folder.indexes(config)}
        if world.rank == 0:
            run_folder.write_config(output, config)
        stop = entered.enter_context(Stop())
        logs = entered.enter_context(Logs(output, world.rank == 0, start, steps, output.name))
        kept = config.checkpoint.keep_last, config.checkpoint.keep_every
        saver = entered.enter_context(Saver(output, task.roles, about, *kept))
        batches = entered.enter_context(Prefetcher(reader.batches(start), world.device))
        entered.push(watchdog.failing)
        skipped, kinds, due = dict.fromkeys(task.roles, 0), set[str](), False
        pace = Pace(config.training.global_batch, peak)
        for step in range(start, steps):
            kind = task.kind(step)
            watchdog.enter("step" if kind in kinds else "first step", step)
            kinds.add(kind)
            batch = next(batches)
            result = task.step(step, batch)
            done = step + 1
            _count_skipped(skipped, result, step, batch, config.training.max_skipped_steps, logs)
            logs.advance()
            pace.step(result.flops_per_sample)
            if done % every == 0 or done == steps:
                values = task.metrics() | result.values | pace.read(batches.waited_since())
                logs.metrics(done, values, task.shown)
                for warning in task.warnings(values):
                    logs.say(f"step {done}: {warning}")
            if config.logging.preview_every and (done % config.logging.preview_every == 0 or done == steps):
                watchdog.enter("sounds of step", done)
                logs.sounds(done, *task.preview(), config.model.codec.sample_rate)
            stopping, writing = stop.agreed(saver.writes)
            due = due or stopping or done % config.checkpoint.every == 0 or done == steps
            saves = due and task.rests(step)
            if saver.begun and (saves or not writing):
                watchdog.enter("saving step", done)
                logs.say(saver.finish())
            if saves:
                watchdog.enter("saving step", done)
                waits = stopping or done == steps or not config.checkpoint.async_save
                saver.begin(done, beside=not waits)
                if waits:
                    logs.say(saver.finish())
                due = False
                if stopping and done < steps:
                    raise StoppedError(f"asked to stop: step {done} of {steps} is saved; go on with --resume")


def restore(task: Task, output: Path, resume: bool, world: World, every: int, beside: bool) -> int:
    """The step to go on from: that of the newest undamaged checkpoint, or 0 in a folder without any.

    Raises NothingLeftError where some were saved and none can be loaded; `every` and `beside` are the run's
    `checkpoint.every` and `async_save`.
    """

    def report(text: str) -> None:
        if world.rank == 0:
            print(text, flush=True)

    folder = load.newest(output, report) if resume else None
    if folder is None:
        if resume:
            run_folder.check_beginning(output, _surely_saved(task, every, beside))
            report(f"{output} has no checkpoint yet: starting at step 0")
        return 0
    step = int(load.load(folder, task.roles)["step"])
    report(f"resumed from {folder} at step {step}")
    return step


def _surely_saved(task: Task, every: int, beside: bool) -> int:
    """The step at whose end the first checkpoint is there: the first save, which one that is written beside the steps
    may not be through with before the second."""
    done = 0
    for _ in range(2 if beside else 1):
        due = (done // every + 1) * every
        done = 1 + next(step for step in itertools.count(due - 1) if task.rests(step))
    return done


def _count_skipped(skipped: dict[str, int], result: Step, step: int, batch: Batch, limit: int, logs: Logs) -> None:
    """Counts each role's non-finite steps in a row. Raises FloatingPointError when one has had `limit` of them
    (`training.max_skipped_steps`)."""
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


class Previews:
    """Sound for fixed prompts from weights in training, for TensorBoard."""

    def __init__(self, config: BaseConfig) -> None:
        self.config = config
        self.names = [f"{i} {prompt}" for i, prompt in enumerate(config.logging.preview_prompts)]

    def load(self) -> None:
        """Text encoder and codec, before training rather than at the first sounds; a run that makes none needs neither
        one's weights. Raises ValueError where they are missing."""
        if self.names and self.config.logging.preview_every:
            try:
                _ = self.asked, self.codec
            except ValueError as error:
                raise ValueError(f"{error}; or set logging.preview_every to 0, which makes no sounds") from None

    @functools.cached_property
    def codec(self) -> AudioCodec:
        return build_codec(self.config.model.codec)

    @functools.cached_property
    def asked(self) -> tuple[Conditions, Nothing]:
        """What the prompts are encoded as, and the absence of everything."""
        model, prompts = self.config.model, list(self.config.logging.preview_prompts)
        encode_text = build_text_encoder(model.text)
        video = torch.zeros(len(prompts), model.video.steps, model.video.dim)
        audio = torch.zeros(len(prompts), model.codec.frames, model.codec.latent_channels)
        return Conditions(video, audio, *encode_text(prompts)), Nothing(encode_text)

    @torch.no_grad()
    def make(self, model: nn.Module, sampling: SamplingConfig, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Latents (B, L, C) of the prompts, from the same noise every time."""
        shape = len(self.names), self.config.model.codec.frames, self.config.model.codec.latent_channels
        if not self.names:
            return torch.zeros(shape)
        generator = torch.Generator().manual_seed(0)
        conditions, nothing = self.asked
        velocity = guided_velocity(model, dtype, conditions.to(device, dtype), nothing, sampling.guidance)
        with torch.compiler.set_stance("force_eager"):
            return sample(velocity, lambda: torch.randn(shape, generator=generator).to(device), sampling).cpu()
