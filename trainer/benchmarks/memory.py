"""A plan's memory against the memory that steps of the same configuration take on this machine."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...kernels.ops import Ops
from ...models.networks import build_network
from ..core.config import BaseConfig, PretrainConfig, check_ranks
from ..core.distill_config import DistillConfig
from ..cost.planned_memory import configured_layout, planned_memory
from ..cost.workload import workload
from ..distillation.updates import Distillation
from ..engine.process_group import World
from ..training.pretrain import Pretraining
from .synthetic_run import random_batch, share_of_rank, start_run

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """The most memory that this process has had resident, or allocated on its GPU, since the last reset."""

    device: torch.device

    def reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            CLEAR.write_text("5")  # Linux: VmHWM restarts at what is resident now

    def bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])


def measure_memory(config: BaseConfig) -> dict[str, Any]:
    """Bytes of this rank. For each role: planned and counted. For the peak of a step (in a distillation, of the steps
    of a round): planned, and measured as allocated memory of a GPU or as growth of resident memory.

    Raises ValueError if the ranks do not divide the batch, or the configuration asks for what cannot run here.
    """
    config, world, selection = start_run(config)  # measures kernels first, so that their memory does not count
    check_ranks(config.training, world.ranks)
    batch = share_of_rank(random_batch(config), world)
    peak = Peak(world.device)
    peak.reset()
    before = peak.bytes()
    trainer, first, measured = _trainer(config, world, selection.ops())
    for step in first:  # allocate everything that stays, of every role
        trainer.step(step, batch)
    peak.reset()
    for step in measured:
        trainer.step(step, batch)
    taken = peak.bytes() - before
    if isinstance(trainer, Distillation):
        counted = trainer.bytes()
    else:
        counted = {"model": trainer.engine.bytes(trainer.ema.values)}
    on_gpu = world.device.type == "cuda"
    work = workload(config, on_gpu)
    planned = planned_memory(work, configured_layout(work, world.ranks), overlap=on_gpu)
    return {
        "ranks": world.ranks,
        "planned": {role.name: asdict(role.bytes(world.rank, world.ranks)) for role in work.roles},
        "counted": {name: asdict(role) for name, role in counted.items()},
        "activations": planned.activations,
        "buffers": planned.buffers,
        "planned_peak": planned.total,
        "measured_peak": taken,
        "ratio": planned.total / taken,
    }


def _trainer(
    config: BaseConfig, world: World, ops: Ops
) -> tuple[Pretraining | Distillation, Iterable[int], Iterable[int]]:
    """The trainer, the steps in which every role is trained first, and the steps to be measured."""
    if isinstance(config, PretrainConfig):
        return Pretraining(config, world, ops), (0,), (1,)
    assert isinstance(config, DistillConfig)
    cycle = config.cycle
    first = range(cycle.first_round, cycle.first_round + cycle.updates_per_round)
    second = range(first.stop, first.stop + cycle.updates_per_round)
    steps = max(config.training.steps, 2 * cycle.student)  # no step is past the end of a schedule
    config = replace(config, training=replace(config.training, steps=steps))
    with world.device:
        teacher = build_network(config.model)
    return Distillation(config, teacher, world, ops), first, second


def format_memory(found: dict[str, Any]) -> str:
    lines = []
    for name, planned in found["planned"].items():
        counted = found["counted"][name]
        same = "the same" if counted == planned else "NOT the same"
        lines.append(f"{name}: {sum(planned.values()):,} bytes planned, {sum(counted.values()):,} counted, {same}")
    peak = f"{found['planned_peak'] / 1e9:.3f} GB planned, {found['measured_peak'] / 1e9:.3f} GB measured"
    return "\n".join([*lines, f"peak of a step: {peak}, ratio {found['ratio']:.3f}"])
