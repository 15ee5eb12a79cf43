"""Rounds of distillation against their passes and optimizer steps, timed alone."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.ops import Ops
from ...models.discriminator import trunk_options
from ...models.networks import build_discriminator, build_network, feature_shape
from ..core.config import OptimizerConfig
from ..core.distill_config import DistillConfig, RoleConfig
from ..core.hardware import peak_flops
from ..cost.operations import forward_flops, update_flops
from ..cost.passes import Gradient, Pass, count_passes, distillation_passes
from ..data.batches import Batch
from ..distillation.updates import Distillation
from ..engine.compilation import compiled_versions
from ..losses.flow_matching import flow_matching_loss
from ..losses.guidance import predict_velocity
from ..training.pretrain import configure_model
from .summary import Column, format_table, spread
from .synthetic_run import random_batch, start_run

WARM_UPS = 2  # rounds, which compile
COLUMNS = (
    Column("part", "part"),
    Column("calls per round", "calls", ".1f"),
    Column("ms", "seconds", ".1f", 1000),
)


def measure(
    config: DistillConfig, rounds: int, with_parts: bool = True, text_lengths: Sequence[int] = ()
) -> dict[str, Any]:
    """Rounds through the trainer, with the operations that the configuration's `kernels` select. Each round is followed
    by its parts, timed alone on plain PyTorch modules with the same operations, precision and compilation. Runs on one
    rank. The parts' modules are four more models in memory; without them a round's time, MFU and memory remain. Updates
    take texts of `text_lengths` in turns (default: full texts). `compiled_versions` are those of a block's code after
    the warm-up and at the end: in a steady state they are the same.

    Raises ValueError if the configuration asks for what cannot run here.
    """
    longest = config.model.text.max_tokens
    if text_lengths and not 0 < min(text_lengths) <= max(text_lengths) <= longest:
        raise ValueError(f"--text-lengths {list(text_lengths)}: between 1 and model.text.max_tokens, {longest}")
    enough = (WARM_UPS + rounds) * config.updates.counts[0]  # no round is past the end of the schedules
    training = replace(config.training, steps=max(config.training.steps, enough))
    updates = replace(config.updates, compile_from=0)  # a long run's speed is asked for
    config, world, selection = start_run(replace(config, training=training, updates=updates))
    batch = random_batch(config)
    batches = [_shortened(batch, length) for length in text_lengths or (longest,)]
    on_gpu = world.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(world.device)
    parts = None
    if with_parts:
        micro_batch = batch.split(config.training.micro_batch)[0].to(world.device)
        parts = RoundParts(config, world.device, micro_batch, selection.ops())
    with world.device:
        teacher = build_network(config.model)
    trainer = Distillation(config, teacher, world, selection.ops())
    del teacher  # the trainer has copies
    for number in range(WARM_UPS):
        _round(trainer, number, batches, parts)
    versions = [compiled_versions()]
    results = [_round(trainer, WARM_UPS + number, batches, parts) for number in range(rounds)]
    versions.append(compiled_versions())
    trainer.destroy()
    speed = statistics.median(one["flops"] / one["seconds"] for one in results)
    facts: dict[str, Any] = {"kernels": selection.names, "rounds": len(results), "compiled_versions": versions}
    facts |= {"round_s": statistics.median(one["seconds"] for one in results)}
    facts |= {"round_flops": statistics.median(one["flops"] for one in results)}
    facts |= {"mfu": speed / peak_flops(world.device, _dtype(config.student.precision))}
    if on_gpu:
        facts["peak_bytes"] = torch.cuda.max_memory_allocated(world.device)
    facts |= {"forward_flops": forward_flops(config.model, batch.conditions.text.shape[1])}
    return facts | (_compare(results) if with_parts else {})


def _shortened(batch: Batch, tokens: int) -> Batch:
    """The batch with texts of at most so many tokens."""
    conditions = batch.conditions
    texts = {"text": conditions.text[:, :tokens], "text_length": conditions.text_length.clamp(max=tokens)}
    return replace(batch, conditions=replace(conditions, **texts))


def _round(trainer: Distillation, number: int, batches: Sequence[Batch], parts: "RoundParts | None") -> dict[str, Any]:
    """A round's seconds and operations, and with `parts` how often it calls each of them and how long each takes."""
    config, cycle = trainer.config, trainer.cycle
    size = len(batches[0])
    micro_batches = size // config.training.micro_batch
    first = cycle.first_round + number * cycle.updates_per_round
    updates = range(first, first + cycle.updates_per_round)
    turns = {update: batches[update % len(batches)] for update in updates}
    seconds = _seconds(lambda: [trainer.step(update, batch) for update, batch in turns.items()])
    calls, flops = Counter[str](), 0
    for update, batch in turns.items():
        phase, tokens = cycle.phase(update), batch.conditions.text.shape[1]
        passes = distillation_passes(config, phase, trainer.objectives.student_step(update))
        flops += size * update_flops(config.model, passes, tokens)
        calls.update({one.title: micro_batches * count for one, count in count_passes(passes).items()})
        calls[f"{phase.value} optimizer"] += 1
    result = {"seconds": seconds, "flops": flops, "calls": dict(calls)}
    return result | ({"parts": parts.seconds()} if parts else {})


def _compare(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds. `ratio` is of a round to the parts that were timed right after it."""
    names = list(results[0]["parts"])
    sums = [sum(one["parts"][name] * one["calls"].get(name, 0) for name in names) for one in results]
    ratios = spread(one["seconds"] / total for one, total in zip(results, sums, strict=True))
    rows = [
        {
            "part": name,
            "calls": statistics.mean(one["calls"].get(name, 0) for one in results),
            "seconds": statistics.median(one["parts"][name] for one in results),
        }
        for name in names
    ]
    ratio = {"ratio": ratios["median"], "ratio_low": ratios["low"], "ratio_high": ratios["high"]}
    return {"rows": rows, "parts_s": statistics.median(sums)} | ratio


class RoundParts:
    """The passes and optimizer steps of a round on modules of their own, one micro-batch at a time."""

    def __init__(self, config: DistillConfig, device: torch.device, batch: Batch, ops: Ops) -> None:
        self.config, self.batch = config, batch
        self._depth = config.distillation.discriminator_blocks, config.distillation.discriminator_heads
        with device:
            student, fake, teacher = (build_network(config.model) for _ in range(3))
        models: dict[str, nn.Module] = {
            "student": configure_model(student, config.training, ops),
            "fake": configure_model(fake, config.training, ops),
            "discriminator": build_discriminator(config.model, *self._depth),
        }
        roles: dict[str, RoleConfig] = {name: getattr(config, name) for name in models}
        self.dtypes = {name: _dtype(role.precision) for name, role in roles.items()}
        self.dtypes["teacher"] = _dtype(config.teacher.precision)
        models["teacher"] = configure_model(teacher, replace(config.training, fp8=False), ops).requires_grad_(False)
        self.models = {name: model.to(device, self.dtypes[name]) for name, model in models.items()}
        self.optimizers = {name: OptimizerStep(self.models[name], role.optimizer) for name, role in roles.items()}
        cycle = config.cycle
        phases = dict.fromkeys(cycle.phase(cycle.first_round + update) for update in range(cycle.updates_per_round))
        steps = range(config.sampling.steps)
        self.passes = dict.fromkeys(
            one for phase in phases for k in steps for one in count_passes(distillation_passes(config, phase, k))
        )

    def seconds(self) -> dict[str, float]:
        """Seconds that each part takes now."""
        passes = {one.title: _seconds(self._call(one)) for one in self.passes}
        return passes | {f"{name} optimizer": _seconds(step) for name, step in self.optimizers.items()}

    def _call(self, one: Pass) -> Callable[[], object]:
        """The pass on inputs that are ready."""
        model, dtype, codec = self.models[one.role], self.dtypes[one.role], self.config.model.codec
        n, device = one.samples * len(self.batch), self.batch.latents.device
        head = one.role == "discriminator"
        model_config = self.config.model
        shape = (
            feature_shape(model_config, *self._depth) if head else (model_config.latent_frames, codec.latent_channels)
        )
        z = torch.randn(n, *shape, device=device, dtype=dtype if head else None)
        z.requires_grad_(one.gradient is Gradient.LATENTS)
        t, conditions = torch.full((n,), 0.5, device=device), self.batch.conditions
        conditions = conditions.__class__(*(torch.cat([x] * one.samples) for x in conditions.tensors()))
        options = trunk_options(*self._depth) if one.blocks else {}

        def call() -> None:
            with torch.set_grad_enabled(one.gradient is not Gradient.NONE):
                out: Tensor = model(z) if head else predict_velocity(model, dtype, z, t, conditions, **options)
                if one.gradient is Gradient.LATENTS:
                    torch.autograd.grad(out.float().mean(), z)
                elif one.gradient is Gradient.WEIGHTS:
                    loss = out.float() if head else flow_matching_loss(out, z, z)
                    loss.mean().backward()

        return call


class OptimizerStep:
    """Clipping, AdamW on fp32 masters, and copying them into the weights that compute."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.clip, self.weights = config.max_grad_norm, list(model.parameters())
        self.masters = [p.detach().float().clone().requires_grad_() for p in self.weights]
        for master in self.masters:
            master.grad = torch.full_like(master, 1e-3)
        betas = config.betas[0], config.betas[1]
        self.adamw = torch.optim.AdamW(self.masters, config.lr, betas, config.eps, config.weight_decay, fused=True)

    def __call__(self) -> None:
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.masters, self.clip)
        self.adamw.step()
        with torch.no_grad():
            torch._foreach_copy_([w.data for w in self.weights], [m.data for m in self.masters])


def _dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _seconds(call: Callable[[], object]) -> float:
    _synchronize()
    begin = time.perf_counter()
    call()
    _synchronize()
    return time.perf_counter() - begin


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary_lines(result: dict[str, Any]) -> list[str]:
    lines = format_table(result["rows"], COLUMNS) if "rows" in result else []
    tflop = result["round_flops"] / 1e12
    lines.append(f"a round {result['round_s']:.3f} s, {tflop:.4g} TFLOP counted, MFU {result['mfu']:.2f}")
    warm, end = result["compiled_versions"]
    lines.append(f"{warm} versions of a block's code are compiled, and {end - warm} more after the warm-up")
    if "peak_bytes" in result:
        lines.append(f"at most {result['peak_bytes'] / 1e9:.1f} GB allocated")
    if "rows" in result:
        low_high = f"{result['ratio_low']:.3f} to {result['ratio_high']:.3f}"
        lines.append(f"its parts alone {result['parts_s']:.3f} s; ratio {result['ratio']:.3f} ({low_high})")
    return lines
