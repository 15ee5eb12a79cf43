"""Recommend a layout, with the reason."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..core.config import INT8_STAGES
from .planned_memory import Layout, PlannedMemory, Stage, micro_batches, planned_memory, usable_memory
from .planned_time import Cluster, average_update_time, run_seconds
from .workload import Workload

STAGES: tuple[Stage, ...] = (0, 1, 2, 3)
EQUAL = 1.001  # times whose ratio is below this count as the same
# ZeRO-3 and checkpointing have costs that no data sheet knows, so they must be faster by this much, or needed.
RISK_MARGIN = 0.1


@dataclass(frozen=True)
class Recommendation:
    """A layout, its memory, and why it is recommended."""

    layout: Layout
    memory: PlannedMemory
    reason: str


def possible_stages(work: Workload) -> tuple[Stage, ...]:
    """The ZeRO stages that a run may have."""
    in_8_bits = any(role.int8 for role in work.roles)
    return tuple(stage for stage in STAGES if stage in INT8_STAGES or not in_8_bits)


def gpu_counts_that_divide(batch: int, cluster: Cluster) -> tuple[int, int]:
    """The nearest numbers of GPUs, below and above, that divide a global batch and fill their nodes; 0 if none."""
    fitting = [
        n for n in range(1, batch + 1) if batch % n == 0 and (n <= cluster.per_node or n % cluster.per_node == 0)
    ]
    below, above = [n for n in fitting if n <= cluster.gpus], [n for n in fitting if n >= cluster.gpus]
    return max(below, default=0), min(above, default=0)


def batches_that_divide(batch: int, gpus: int) -> tuple[int, int]:
    """The nearest global batches, below and above, that so many GPUs divide; 0 if none."""
    return batch // gpus * gpus, math.ceil(batch / gpus) * gpus


def nearest_batch(work: Workload, gpus: int) -> int:
    """The global batch nearest to the configured one that so many GPUs divide."""
    configured = work.training.global_batch
    return min((n for n in batches_that_divide(configured, gpus) if n), key=lambda n: (abs(n - configured), n))


def batch_problem(work: Workload, cluster: Cluster) -> str:
    """The reason why the configured batch does not divide over these GPUs, and one that would; "" if it does."""
    batch, micro, gpus = work.training.global_batch, work.training.micro_batch, cluster.gpus
    if batch % (gpus * micro) == 0:
        return ""
    wrong = f"training.global_batch {batch} is not a multiple of {gpus} GPUs x micro_batch {micro} = {gpus * micro}"
    if sizes := micro_batches(batch, gpus):
        return f"{wrong}; a micro_batch of {_either(sizes)} divides it"
    counts = [str(n) for n in gpu_counts_that_divide(batch, cluster) if n]
    totals = [str(n) for n in batches_that_divide(batch, gpus) if n]
    return f"{wrong}; {_either(counts)} GPUs would divide it, and {gpus} a global_batch of {_either(totals)}"


def recommend(work: Workload, cluster: Cluster) -> Recommendation | None:
    """The fastest layout that fits. Of equally fast ones it has the largest micro-batches, which use a GPU best, and
    then the least memory. If the GPUs do not divide the global batch, it is for the nearest batch that they do divide.
    None if nothing fits."""
    batch, fitting = nearest_batch(work, cluster.gpus), []
    for micro in micro_batches(batch, cluster.gpus):
        for stage in possible_stages(work):
            for checkpointing in (False,) if work.training.recompute_swiglu else (False, True):
                layout = Layout(cluster.gpus, stage, micro, batch, checkpointing)
                memory = planned_memory(work, layout)
                if memory.total <= usable_memory(cluster.gpu):
                    seconds = _penalised_seconds(work, layout, cluster)
                    fitting.append((seconds, (-micro, memory.total), layout, memory))
    if not fitting:
        return None
    fastest = min(seconds for seconds, *_ in fitting)
    _, _, layout, memory = min((f for f in fitting if f[0] <= EQUAL * fastest), key=lambda f: f[1])
    return Recommendation(layout, memory, _reason(work, layout, memory, cluster))


def _penalised_seconds(work: Workload, layout: Layout, cluster: Cluster) -> float:
    """Seconds of a run, with the margin for ZeRO-3 and for checkpointing."""
    margin = (1 + RISK_MARGIN * (layout.stage == 3)) * (1 + RISK_MARGIN * layout.checkpointing)
    return run_seconds(work, layout, cluster) * margin


def _reason(work: Workload, layout: Layout, memory: PlannedMemory, cluster: Cluster) -> str:
    """The reason why no other layout is better, in a sentence."""
    space, seconds = usable_memory(cluster.gpu), run_seconds(work, layout, cluster)
    parts = [f"the fastest that fits, with {memory.total / 1e9:.1f} of {space / 1e9:.1f} GB"]
    for stage in possible_stages(work):
        other = replace(layout, stage=stage)
        more, ratio = planned_memory(work, other).total, run_seconds(work, other, cluster) / seconds
        if more > space:
            parts.append(f"ZeRO-{stage} would need {more / 1e9:.1f} GB")
        elif stage != layout.stage and ratio < EQUAL:
            parts.append(f"ZeRO-{stage} takes {more / 1e9:.1f} GB and {ratio:.0%} of the time")
        elif stage != layout.stage:
            parts.append(f"ZeRO-{stage} takes {ratio:.2f} times as long")
    if layout.checkpointing:
        more = planned_memory(work, replace(layout, checkpointing=False)).total
        parts.append(f"without checkpointing it would need {more / 1e9:.1f} GB")
    update = average_update_time(work, layout, cluster)
    share = update.compute / update.seconds
    parts.append(f"{share:.0%} of a step is computing")
    if share < 0.5:
        parts.append("so that fewer GPUs or a larger global batch would use them better")
    return ", ".join(parts)


def _either(values: Sequence[str] | Sequence[int]) -> str:
    """ "1", "1 or 2", "1, 2 or 3"."""
    *most, last = map(str, values)
    return f"{', '.join(most)} or {last}" if most else last
