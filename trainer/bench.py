"""Benchmarks: ours and its alternatives in one run, interleaved, medians of many."""

import itertools
import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from ..models.audiox import AudioX
from . import zero
from .config import BaseConfig, LoggingConfig, RunConfig
from .data.tasks import Batch, Conditions
from .flops import forward_flops, training_flops
from .flow_matching import flow_matching_loss, interpolate
from .hardware import describe, peak_flops
from .pretrain import Pretraining, compile_blocks, draw_noise, noise_levels
from .products import products_of
from .timing import interleaved

C = TypeVar("C", bound=BaseConfig)


def train(config: RunConfig, rounds: int, inner: int) -> dict[str, Any]:
    """Training steps through DeepSpeed against a plain PyTorch loop over the same model (autocast, fused AdamW,
    clipping), both with the configuration's compilation; the plain loop eagerly and in fp32 as well. And the matrix
    products of the step alone, in the step's precision: whatever is done about the rest, no step is faster.

    Where several ranks on a CPU share the batch, the plain loop has it whole and every core, and the other ranks wait.
    """
    config = without_weights(config)
    world = zero.start(config.training.threads)
    batch = random_batch(config)
    mine = batch.split(len(batch) // world.ranks)[world.rank]
    task, step = Pretraining(config, world), itertools.count()
    variants: dict[str, Callable[[], None]] = {"deepspeed": lambda: _discard(task.step(next(step), mine))}
    variants |= _plain(config, world, batch)
    products = products_of(PlainLoop(config, world.device, "fp32", False, mine), task.engine.dtype, world.device)
    variants["products alone"] = products
    seconds = interleaved(variants, rounds, inner, warmup=3)
    flops = training_flops(config.model, batch.conditions.text.shape[1])
    peak = peak_flops(world.device, task.engine.dtype) * world.ranks
    rows = []
    for name, values in seconds.items():
        speeds = sorted(len(batch) / s for s in values)
        ratios = [a / b for a, b in zip(seconds["plain"], values, strict=True)]
        median = statistics.median(speeds)
        rows.append(
            {
                "variant": name,
                "samples_per_s": median,
                "low": speeds[0],
                "high": speeds[-1],
                "ratio_to_plain": statistics.median(ratios),
                "mfu": median * flops / peak,
            }
        )
    parts = forward_flops(config.model, batch.conditions.text.shape[1])
    facts = {"host": describe(), "ranks": world.ranks, "rows": rows, "product_flops": products.flops / len(mine)}
    return facts | {"forward_flops": parts, "training_flops": flops, "peak_flops": peak}


def _plain(config: RunConfig, world: zero.World, batch: Batch) -> dict[str, Callable[[], None]]:
    """Loops without DeepSpeed, by name."""
    training = config.training
    loops = {"plain": (training.precision, training.compile)}
    if training.compile or training.precision != "fp32":
        loops["plain eager fp32"] = ("fp32", False)
    # As many samples at once as all ranks take together.
    config = replace(config, training=replace(training, micro_batch=training.micro_batch * world.ranks))
    return {
        name: _alone(PlainLoop(config, world.device, precision, compiled, batch), world)
        for name, (precision, compiled) in loops.items()
    }


def _alone(call: Callable[[], None], world: zero.World) -> Callable[[], None]:
    """On the first rank with all cores of the machine, while the others wait."""
    if world.ranks == 1:
        return call
    own = torch.get_num_threads()

    def first() -> None:
        if world.rank == 0:
            torch.set_num_threads(os.cpu_count() or 1)
            call()
            torch.set_num_threads(own)
        torch.distributed.barrier()

    return first


class PlainLoop:
    """A training step without DeepSpeed, as the alternative to measure against."""

    def __init__(self, config: RunConfig, device: torch.device, precision: str, compiled: bool, batch: Batch) -> None:
        torch.manual_seed(config.training.seed)
        self.config, self.device, self.batch = config, device, batch
        self.model = AudioX(config.model).to(device)
        if compiled:
            compile_blocks(self.model, config.training.compile_conditioner)
        o = config.optimizer
        self.adamw = torch.optim.AdamW(
            self.model.parameters(), o.lr, (o.betas[0], o.betas[1]), o.eps, o.weight_decay, fused=True
        )
        self.autocast = precision == "bf16"
        self.ema = [p.detach().clone() for p in self.model.parameters()]

    def __call__(self) -> None:
        micro = self.batch.split(self.config.training.micro_batch)
        for part in micro:
            z1, uniform = draw_noise(0, 0, part)
            t = noise_levels(uniform, self.config.training).to(self.device)
            z0, z1 = part.latents.to(self.device), z1.to(self.device)
            conditions = part.conditions.to(self.device, torch.float32).tensors()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                v = self.model(interpolate(z0, z1, t), t, *conditions)
            (flow_matching_loss(v, z0, z1).mean() / len(micro)).backward()
        if self.config.optimizer.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip)
        self.adamw.step()
        self.adamw.zero_grad()
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.model.parameters()], 1e-3)


def without_weights(config: C) -> C:
    """The same model with features from nowhere: no encoder or codec is loaded."""
    text = replace(config.model.text, kind="words")
    return replace(config, model=replace(config.model, text=text), logging=LoggingConfig())


def random_batch(config: BaseConfig) -> Batch:
    """A rank's batch of the configured shapes, full texts, numbers from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    model, n = config.model, config.training.global_batch
    text = model.text
    shapes = (
        (n, model.codec.frames, model.codec.channels),
        (n, model.video.steps, model.video.dim),
        (n, model.codec.frames, model.codec.channels),
        (n, text.max_tokens, text.dim),
    )
    latents, video, audio, words = (torch.randn(s, generator=generator) for s in shapes)
    length = torch.randint(1, text.max_tokens + 1, (n,), generator=generator)
    names = tuple(str(i) for i in range(n))
    nothing = torch.zeros(n, model.codec.frames)
    return Batch(latents, Conditions(video, audio, words, length), nothing, torch.arange(n), ("T2A",) * n, names)


def _discard(_: object) -> None:
    return None


def table(result: dict[str, Any]) -> list[str]:
    """Lines to print."""
    lines = [f"{'variant':20} {'samples/s':>10} {'low':>8} {'high':>8} {'x plain':>8} {'MFU':>6}"]
    for row in result["rows"]:
        speeds = f"{row['samples_per_s']:10.1f} {row['low']:8.1f} {row['high']:8.1f}"
        lines.append(f"{row['variant']:20} {speeds} {row['ratio_to_plain']:8.3f} {row['mfu']:6.3f}")
    return lines
