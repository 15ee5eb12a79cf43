"""Which arrangement to take, and why."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .plan import Arrangement, Memory, Workload, arranged, micro_batches, room
from .plan_time import Cluster, average, run_seconds

STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
EQUAL = 1.001  # times closer than this are the same
# ZeRO-3 and checkpointing have costs that no data sheet knows, so they have to be faster by this much, or needed.
RISK = 0.1


@dataclass(frozen=True)
class Choice:
    """An arrangement, what it takes, and why it is recommended."""

    plan: Arrangement
    memory: Memory
    reason: str


def divisors(batch: int, cluster: Cluster) -> tuple[int, int]:
    """The numbers of GPUs, below and above, that divide a global batch and fill their nodes. 0 for none."""
    fitting = [n for n in range(1, batch + 1) if batch % n == 0 and (n <= cluster.each or n % cluster.each == 0)]
    below, above = [n for n in fitting if n <= cluster.gpus], [n for n in fitting if n >= cluster.gpus]
    return max(below, default=0), min(above, default=0)


def batches(batch: int, gpus: int) -> tuple[int, int]:
    """The global batches, below and above, that can be divided over so many GPUs. 0 for none."""
    return batch // gpus * gpus, math.ceil(batch / gpus) * gpus


def nearest(work: Workload, gpus: int) -> int:
    """The global batch nearest to the configured one that can be divided over so many GPUs."""
    wanted = work.training.global_batch
    return min((n for n in batches(wanted, gpus) if n), key=lambda n: (abs(n - wanted), n))


def undivided(work: Workload, cluster: Cluster) -> str:
    """What is wrong with the configured batch on these GPUs and what would not be, or ""."""
    batch, micro, gpus = work.training.global_batch, work.training.micro_batch, cluster.gpus
    if batch % (gpus * micro) == 0:
        return ""
    wrong = f"training.global_batch {batch} is not a multiple of {gpus} GPUs x micro_batch {micro} = {gpus * micro}"
    if sizes := micro_batches(batch, gpus):
        return f"{wrong}; a micro_batch of {_either(sizes)} divides it"
    counts = [str(n) for n in divisors(batch, cluster) if n]
    totals = [str(n) for n in batches(batch, gpus) if n]
    return f"{wrong}; {_either(counts)} GPUs would divide it, and {gpus} a global_batch of {_either(totals)}"


def choose(work: Workload, cluster: Cluster) -> Choice | None:
    """The fastest arrangement that fits; of equally fast ones that of the largest micro-batches, which use a GPU best,
    and then of least memory. Where the GPUs do not divide the global batch it is for the nearest that they do. None
    where nothing fits."""
    batch, found = nearest(work, cluster.gpus), []
    for micro in micro_batches(batch, cluster.gpus):
        for stage in STAGES:
            for again in (False, True):
                plan = Arrangement(cluster.gpus, stage, micro, batch, again)
                taken = arranged(work, plan)
                if taken.total <= room(cluster.gpu):
                    found.append((_penalised(work, plan, cluster), (-micro, taken.total), plan, taken))
    if not found:
        return None
    fastest = min(seconds for seconds, *_ in found)
    _, _, plan, taken = min((f for f in found if f[0] <= EQUAL * fastest), key=lambda f: f[1])
    return Choice(plan, taken, _reason(work, plan, taken, cluster))


def _penalised(work: Workload, plan: Arrangement, cluster: Cluster) -> float:
    """Seconds of a run, with a tenth more for what is only taken where it brings more than that."""
    return run_seconds(work, plan, cluster) * (1 + RISK * (plan.stage == 3)) * (1 + RISK * plan.checkpointing)


def _reason(work: Workload, plan: Arrangement, taken: Memory, cluster: Cluster) -> str:
    """Why no other, in a sentence."""
    space, seconds = room(cluster.gpu), run_seconds(work, plan, cluster)
    parts = [f"the fastest that fits, with {taken.total / 1e9:.1f} of {space / 1e9:.1f} GB"]
    for stage in STAGES:
        other = replace(plan, stage=stage)
        more, ratio = arranged(work, other).total, run_seconds(work, other, cluster) / seconds
        if more > space:
            parts.append(f"ZeRO-{stage} would need {more / 1e9:.1f} GB")
        elif stage != plan.stage and ratio < EQUAL:
            parts.append(f"ZeRO-{stage} takes {more / 1e9:.1f} GB and {ratio:.0%} of the time")
        elif stage != plan.stage:
            parts.append(f"ZeRO-{stage} takes {ratio:.2f} times as long")
    if plan.checkpointing:
        more = arranged(work, replace(plan, checkpointing=False)).total
        parts.append(f"without checkpointing it would need {more / 1e9:.1f} GB")
    update = average(work, plan, cluster)
    share = update.compute / update.seconds
    parts.append(f"{share:.0%} of a step is computing")
    if share < 0.5:
        parts.append("so that fewer GPUs or a larger global batch would use them better")
    return ", ".join(parts)


def _either(values: Sequence[str] | Sequence[int]) -> str:
    """ "1", "1 or 2", "1, 2 or 3"."""
    *most, last = map(str, values)
    return f"{', '.join(most)} or {last}" if most else last
