"""A plan's memory beside what steps of the same configuration take on this machine."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...kernels.ops import Ops
from ...models.audiox import AudioX
from ..core.config import BaseConfig, PretrainConfig, check_ranks
from ..core.distill_config import DistillConfig
from ..core.hardware import describe
from ..cost.plan import Arrangement, memory, workload
from ..engine import kernel_selection, zero
from ..engine.fp8 import check_fp8
from ..training.distill_updates import Distillation
from ..training.pretrain import Pretraining
from .train import random_batch, without_weights

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """The most memory that this process has had resident, or allocated on its GPU, since it was told to forget."""

    device: torch.device

    def forget(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            CLEAR.write_text("5")  # Linux: VmHWM begins anew at what is resident now

    def bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])


def measured(config: BaseConfig) -> dict[str, Any]:
    """Bytes of this rank: of each role by arithmetic and counted; of the peak of a step planned and measured, as
    allocated on a GPU or as growth of resident memory. Of a distillation the peak is that of the steps of a round.

    Raises ValueError where the ranks do not divide the batch, or the configuration asks for what cannot run here.
    """
    assert isinstance(config, (PretrainConfig, DistillConfig))
    precision = config.training.precision if isinstance(config, PretrainConfig) else config.precision
    kernel_selection.check(config.kernels, precision, config.model)
    if config.training.fp8:
        check_fp8()
    config = without_weights(config)
    world, training = zero.init_process_group(config.training.cpu_threads), config.training
    on_gpu, accumulation = world.device.type == "cuda", check_ranks(training, world.ranks)
    batch = random_batch(config).split(training.global_batch // world.ranks)[world.rank]
    ops = kernel_selection.chosen(config, world, precision).ops()  # measured before, so that its memory does not count
    peak = Peak(world.device)
    peak.forget()
    before = peak.bytes()
    task, steps, again = _task(config, world, ops)
    for step in steps:  # these make what stays, of every role
        task.step(step, batch)
    peak.forget()
    for step in again:
        task.step(step, batch)
    taken = peak.bytes() - before
    if isinstance(task, Distillation):
        counted = task.bytes()
    else:
        counted = {"model": task.engine.bytes(task.ema.values)}
    work = workload(config, on_gpu)
    plan = Arrangement(
        world.ranks, None, training.micro_batch, training.global_batch, training.activation_checkpointing
    )
    reckoned = memory(work, plan, overlap=on_gpu, accumulating=accumulation > 1)
    return {
        "host": describe(),
        "ranks": world.ranks,
        "planned": {role.name: asdict(role.bytes(world.rank, world.ranks)) for role in work.roles},
        "counted": {name: asdict(held) for name, held in counted.items()},
        "activations": reckoned.activations,
        "buffers": reckoned.buffers,
        "planned_peak": reckoned.total,
        "measured_peak": taken,
        "ratio": reckoned.total / taken,
    }


def _task(
    config: BaseConfig, world: zero.World, ops: Ops
) -> tuple[Pretraining | Distillation, Iterable[int], Iterable[int]]:
    """And the steps in which every role is trained, before those that are to be measured."""
    if isinstance(config, PretrainConfig):
        return Pretraining(config, world, ops), (0,), (1,)
    assert isinstance(config, DistillConfig)
    cycle = config.cycle
    first = range(cycle.first_round, cycle.first_round + cycle.updates_per_round)
    second = range(first.stop, first.stop + cycle.updates_per_round)
    enough = max(config.training.steps, 2 * cycle.student)  # no step lies behind the end of a schedule
    config = replace(config, training=replace(config.training, steps=enough))
    with world.device:
        teacher = AudioX(config.model)
    return Distillation(config, teacher, world, ops), first, second


def shown(found: dict[str, Any]) -> str:
    """As text."""
    lines = []
    for name, planned in found["planned"].items():
        counted = found["counted"][name]
        same = "the same" if counted == planned else "NOT the same"
        lines.append(f"{name}: {sum(planned.values()):,} bytes planned, {sum(counted.values()):,} counted, {same}")
    peak = f"{found['planned_peak'] / 1e9:.3f} GB planned, {found['measured_peak'] / 1e9:.3f} GB measured"
    return "\n".join([*lines, f"peak of a step: {peak}, ratio {found['ratio']:.3f}"])
