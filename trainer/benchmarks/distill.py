"""What a round of distillation costs beyond its forwards, backwards and optimizer steps."""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.ops import Ops
from ...models.audiox import AudioX
from ...models.discriminator import DiscriminatorHead
from ..core.config import OptimizerConfig
from ..core.distill_config import DistillConfig, RoleConfig
from ..core.hardware import describe, description_lines, peak_flops
from ..core.update_cycle import Phase
from ..cost.distill_operations import update_flops
from ..cost.operations import counted, forward_flops
from ..data.batches import Batch
from ..engine import kernel_selection, zero
from ..engine.fp8 import check_fp8
from ..losses.flow_matching import flow_matching_loss
from ..losses.guidance import predict_velocity
from ..training.distill_updates import Distillation
from ..training.pretrain import configure_model
from .train import chosen_names, random_batch, without_weights

WARM_UPS = 2  # rounds, which compile

# The parts of a round, by name: how often each phase calls them for a micro-batch, k being its step of the student.
FORWARD, TRAINED, GUIDED, FAKE = "student forward", "student forward, backward", "teacher guided", "fake forward"
FAKE_TRAINED, TRUNK, CRITIC = "fake forward, backward", "trunk forward", "trunk and head forward, backward to z"
HEAD = "head forward, backward"


def calls(phase: Phase, k: int, adversarial: bool) -> Counter[str]:
    """What an update needs of each part, a micro-batch."""
    if phase is Phase.STUDENT:
        return Counter({FORWARD: k, TRAINED: 1, GUIDED: 1, FAKE: 1, CRITIC: int(adversarial)})
    if phase is Phase.FAKE:
        return Counter({FORWARD: k + 1, FAKE_TRAINED: 1})
    return Counter({FORWARD: k + 1, TRUNK: 2, HEAD: 1})


def distill(config: DistillConfig, rounds: int, with_parts: bool = True) -> dict[str, Any]:
    """Rounds through the trainer with the operations that the configuration's `kernels` say, each beside its parts
    timed alone on plain PyTorch modules of the same operations, precision and compilation. One rank. The parts' modules
    are four more models in memory: without them, a round's time, MFU and memory are what is left.

    Raises ValueError where the configuration asks for what cannot run here, and with parts for another reading of
    Eq. 10 than the default, whose parts differ.
    """
    kernel_selection.check(config.kernels, config.precision, config.model)
    if config.training.fp8:
        check_fp8()
    if with_parts and config.distillation.loss != "dmd":
        raise ValueError(f"distillation.loss: {config.distillation.loss!r}; the parts counted here are those of 'dmd'")
    enough = (WARM_UPS + rounds) * config.updates.counts[0]  # no round lies behind the end of the schedules
    training = replace(config.training, steps=max(config.training.steps, enough))
    config = without_weights(replace(config, training=training))
    world, batch = zero.init_process_group(config.training.cpu_threads), random_batch(config)
    choice = kernel_selection.chosen(config, world, config.precision)
    on_gpu, tokens = world.device.type == "cuda", batch.conditions.text.shape[1]
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(world.device)
    parts = None
    if with_parts:
        part = batch.split(config.training.micro_batch)[0].to(world.device)
        parts = Parts(config, world.device, part, choice.ops())
    with world.device:
        teacher = AudioX(config.model)
    task = Distillation(config, teacher, world, choice.ops())
    micro = len(batch) // config.training.micro_batch
    turns: list[dict[str, Any]] = []
    for turn in range(WARM_UPS + rounds):
        first = task.cycle.first_round + turn * task.cycle.updates_per_round
        updates = range(first, first + task.cycle.updates_per_round)
        begin = time.perf_counter()
        for update in updates:
            task.step(update, batch)
        _finish()
        whole = time.perf_counter() - begin
        needed, flops = Counter[str](), 0
        for update in updates:
            phase, k = task.cycle.phase(update), task.draws.interval(update, config.distillation.step_probabilities)
            each = calls(phase, k, config.distillation.adversarial_weight > 0)
            needed += Counter({name: micro * count for name, count in each.items()})
            needed[f"{phase.value} optimizer"] += 1
            flops += len(batch) * update_flops(config, phase, k, tokens)
        turns.append({"round": whole, "flops": flops})
        if parts is not None:
            seconds = parts.seconds()
            total = sum(count * seconds[name] for name, count in needed.items())
            turns[-1] |= {"parts": total, "seconds": seconds, "calls": dict(needed)}
    task.destroy()
    turns = turns[WARM_UPS:]
    speed = statistics.median(turn["flops"] / turn["round"] for turn in turns)
    facts: dict[str, Any] = {"host": describe(), "kernels": choice.names, "rounds": len(turns)}
    facts |= {"round_s": statistics.median(turn["round"] for turn in turns)}
    facts |= {"round_flops": statistics.median(turn["flops"] for turn in turns)}
    facts |= {"mfu": speed / peak_flops(world.device, _dtype(config.student.precision))}
    if on_gpu:
        facts["peak_bytes"] = torch.cuda.max_memory_allocated(world.device)
    return facts | {"forward_flops": forward_flops(config.model, tokens)} | (summary(turns) if with_parts else {})


def summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the turns of the parts; `ratio` is that of neighbours."""
    ratios = sorted(turn["round"] / turn["parts"] for turn in turns)
    rows = [
        {
            "part": name,
            "calls": statistics.mean(turn["calls"].get(name, 0) for turn in turns),
            "seconds": statistics.median(turn["seconds"][name] for turn in turns),
        }
        for name in turns[0]["seconds"]
    ]
    return {
        "rows": rows,
        "parts_s": statistics.median(turn["parts"] for turn in turns),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
    }


class Parts:
    """The parts of a round on modules of their own, one micro-batch at a time."""

    def __init__(self, config: DistillConfig, device: torch.device, batch: Batch, ops: Ops) -> None:
        self.config, self.batch, n = config, batch, len(batch)
        self.z, self.t = torch.randn_like(batch.latents), torch.full((n,), 0.5, device=device)
        self.both = batch.conditions.__class__(*(torch.cat((x, x)) for x in batch.conditions.tensors()))
        with device:
            student, fake, teacher = (AudioX(config.model) for _ in range(3))
        models: dict[str, nn.Module] = {
            "student": configure_model(student, config.training, ops),
            "fake": configure_model(fake, config.training, ops),
            "discriminator": DiscriminatorHead(config.model.backbone.width),
        }
        roles: dict[str, RoleConfig] = {name: getattr(config, name) for name in models}
        self.dtypes = {name: _dtype(role.precision) for name, role in roles.items()} | {
            "teacher": _dtype(config.teacher.precision)
        }
        models["teacher"] = configure_model(teacher, replace(config.training, fp8=False), ops).requires_grad_(False)
        self.models = {name: model.to(device, self.dtypes[name]) for name, model in models.items()}
        self.optimizers = {name: Optimizer(self.models[name], role.optimizer) for name, role in roles.items()}

    def seconds(self) -> dict[str, float]:
        """How long each part takes now."""
        student, fake = ("student", self.z), ("fake", self.z)
        timed = {
            FORWARD: lambda: self._forward(*student),
            TRAINED: lambda: self._trained(*student),
            GUIDED: self._guided,
            FAKE: lambda: self._forward(*fake),
            FAKE_TRAINED: lambda: self._trained(*fake),
            TRUNK: lambda: self._forward("teacher", self.z, n_blocks=self.config.distillation.discriminator_blocks),
            CRITIC: self._critic,
            HEAD: self._head,
        }
        found = {name: _timed(call) for name, call in timed.items()}
        return found | {f"{name} optimizer": _timed(step) for name, step in self.optimizers.items()}

    def _through(self, name: str, z: Tensor, **options: int) -> Tensor:
        return predict_velocity(self.models[name], self.dtypes[name], z, self.t, self.batch.conditions, **options)

    @torch.no_grad()
    def _forward(self, name: str, z: Tensor, **options: int) -> None:
        self._through(name, z, **options)

    def _trained(self, name: str, z: Tensor) -> None:
        flow_matching_loss(self._through(name, z), z, self.batch.latents).mean().backward()

    @torch.no_grad()
    def _guided(self) -> None:
        predict_velocity(
            self.models["teacher"], self.dtypes["teacher"], self.z.repeat(2, 1, 1), self.t.repeat(2), self.both
        )

    def _critic(self) -> None:
        z = self.z.clone().requires_grad_()
        features = self._through("teacher", z, n_blocks=self.config.distillation.discriminator_blocks)
        torch.autograd.grad(self.models["discriminator"](features.to(self.dtypes["discriminator"])).mean(), z)

    def _head(self) -> None:
        n, width = 2 * len(self.batch), self.config.model.backbone.width
        shape = n, self.config.model.codec.frames, width
        features = torch.zeros(shape, device=self.z.device, dtype=self.dtypes["discriminator"])
        self.models["discriminator"](features).float().mean().backward()


class Optimizer:
    """Clipping, AdamW on fp32 masters, and what is computed with written back."""

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


def _timed(call: Callable[[], None]) -> float:
    _finish()
    begin = time.perf_counter()
    call()
    _finish()
    return time.perf_counter() - begin


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def table(result: dict[str, Any]) -> list[str]:
    """Lines to print."""
    lines = [*description_lines(result["host"]), counted(result["forward_flops"]), chosen_names(result["kernels"])]
    if "rows" in result:
        lines.append(f"{'part':40} {'calls a round':>14} {'ms':>9}")
        lines += [f"{row['part']:40} {row['calls']:14.1f} {1000 * row['seconds']:9.1f}" for row in result["rows"]]
    lines.append(
        f"a round {result['round_s']:.3f} s, {result['round_flops'] / 1e12:.4g} TFLOP counted, MFU {result['mfu']:.2f}"
    )
    if "peak_bytes" in result:
        lines.append(f"at most {result['peak_bytes'] / 1e9:.1f} GB allocated")
    if "rows" in result:
        spread = f"{result['ratio_low']:.3f} to {result['ratio_high']:.3f}"
        lines.append(f"its parts alone {result['parts_s']:.3f} s; ratio {result['ratio']:.3f} ({spread})")
    return lines
