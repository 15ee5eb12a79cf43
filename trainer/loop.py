"""The loop that pretraining and distillation share: fetch, step, log, save."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..models.audiox import SamplingConfig
from ..models.encoders.base import AudioCodec
from ..models.encoders.build import build_codec, build_text_encoder
from ..models.sampler import sample
from . import checkpoint, run
from .checkpoint import Role
from .config import RunConfig
from .data.tasks import Batch
from .distill_config import DistillConfig
from .logs import Logs
from .zero import World


@dataclass(frozen=True)
class Step:
    """What a training step tells the loop."""

    applied: bool  # false where a gradient was not finite and the weights stayed
    values: dict[str, float]
    flops_per_sample: int


class Task(Protocol):
    """What is trained."""

    shown: tuple[str, ...]  # values that stand in the progress bar
    roles: dict[str, Role]
    total: int  # steps of the whole run

    def step(self, step: int, batch: Batch) -> Step: ...

    def rests(self, step: int) -> bool:
        """Whether a checkpoint may follow this step."""
        ...

    def metrics(self) -> dict[str, float]: ...

    def warnings(self, values: dict[str, float]) -> list[str]:
        """What a person should know of these values, in plain words."""
        ...

    def preview(self) -> tuple[list[str], Tensor, Tensor]:
        """Names, waves (B, channels, samples) and latents (B, L, C) of what the EMA weights make now."""
        ...


class Batches(Protocol):
    """Where samples come from."""

    def batches(self, start: int) -> Iterator[Batch]: ...


def train(
    task: Task,
    reader: Batches,
    config: RunConfig | DistillConfig,
    world: World,
    output: Path,
    resume: bool,
    peak: float,
    about: dict[str, Any],
) -> None:
    """Run `task` from where its folder stands to its end; `peak` is all ranks' FLOP/s, for MFU."""
    start = restore(task, output, resume, world)
    if world.rank == 0:
        run.write_config(output, config)
    steps, every = task.total, config.logging.every
    with Logs(output, world.rank == 0, start, steps, output.name) as logs:
        batches = ahead(reader.batches(start))
        skipped, logged, clock, flops, due = 0, start, time.perf_counter(), 0, False
        for step in range(start, steps):
            batch = next(batches)
            result = task.step(step, batch)
            done = step + 1
            skipped = _count_skipped(skipped, result, step, batch, config.training.max_skipped, logs)
            logs.advance()
            flops += result.flops_per_sample * config.training.global_batch
            if done % every == 0 or done == steps:
                values = task.metrics() | result.values
                now = time.perf_counter()
                speed = (done - logged) * config.training.global_batch / (now - clock)
                values |= {"samples_per_s": speed, "mfu": flops / (now - clock) / peak}
                logs.metrics(done, values, task.shown)
                for warning in task.warnings(values):
                    logs.say(f"step {done}: {warning}")
                clock, logged, flops = now, done, 0
            if config.logging.samples_every and (done % config.logging.samples_every == 0 or done == steps):
                logs.sounds(done, *task.preview(), config.model.codec.sample_rate)
            due = due or done % config.checkpoint.every == 0 or done == steps
            if due and task.rests(step):
                checkpoint.save(output, done, task.roles, config.checkpoint.keep, about)
                due = False


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, each assembled in a thread while the one before it is trained on."""
    with ThreadPoolExecutor(1, "reader") as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def restore(task: Task, output: Path, resume: bool, world: World) -> int:
    """The step to go on from: that of the newest undamaged checkpoint, or 0 in a folder without any."""

    def report(text: str) -> None:
        if world.rank == 0:
            print(text, flush=True)

    folder = checkpoint.newest(output, report) if resume else None
    if folder is None:
        if resume:
            report(f"{output} has no checkpoint yet: starting at step 0")
        return 0
    step = int(checkpoint.load(folder, task.roles)["step"])
    report(f"resumed from {folder} at step {step}")
    return step


def _count_skipped(skipped: int, result: Step, step: int, batch: Batch, limit: int, logs: Logs) -> int:
    """Non-finite steps in a row. Raises FloatingPointError when there are `limit` of them (`training.max_skipped`)."""
    if result.applied:
        return 0
    logs.say(
        f"step {step}: the gradient is not finite on some rank; no rank updated its weights ({skipped + 1} in a row)"
    )
    if skipped + 1 >= limit:
        raise FloatingPointError(
            f"{limit} steps in a row, to step {step}, had a loss or gradient that is not finite; rank 0's last samples "
            f"were {', '.join(batch.ids[:8])}. The last checkpoint is intact: lower optimizer.lr, or look at them"
        )
    return skipped + 1


class Previews:
    """Sound for fixed prompts from weights in training, for TensorBoard."""

    def __init__(self, config: RunConfig | DistillConfig) -> None:
        self.config = config
        self.codec: AudioCodec = build_codec(config.model.codec)
        prompts = list(config.logging.prompts)
        self.names = [f"{i} {prompt}" for i, prompt in enumerate(prompts)]
        self.text: Tensor | None = None
        if prompts:
            self.text, self.length = build_text_encoder(config.model.text)([*prompts, *[""] * len(prompts)])

    @torch.no_grad()
    def make(self, model: nn.Module, sampling: SamplingConfig, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Latents (B, L, C) of the prompts, from the same noise every time."""
        codec, video = self.config.model.codec, self.config.model.video
        if self.text is None:
            return torch.zeros(0, codec.frames, codec.channels)
        n = len(self.text) // 2
        generator = torch.Generator().manual_seed(0)
        shapes = ((2 * n, video.steps, video.dim), (2 * n, codec.frames, codec.channels))
        features = [torch.zeros(s, device=device, dtype=dtype) for s in shapes]
        text, length = self.text.to(device, dtype), self.length.to(device)

        def draw() -> Tensor:
            return torch.randn(n, codec.frames, codec.channels, generator=generator).to(device)

        def velocity(z: Tensor, t: Tensor) -> Tensor:  # through forward, which ZeRO-3 needs to gather weights
            both = model(z.repeat(2, 1, 1).to(dtype), t.repeat(2), *features, text, length).float()
            v, v_uncond = both.chunk(2)
            return v_uncond + sampling.guidance * (v - v_uncond)

        with torch.compiler.set_stance("force_eager"):
            return sample(velocity, draw, sampling).cpu()
