"""One run on more and more GPUs: where they compute, and where they wait for each other. A table in Markdown."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from .plan import Arrangement, Workload, arranged, micro_batches, room
from .plan_choice import nearest
from .plan_time import Cluster, average, save_seconds

COLUMNS = (
    "GPUs",
    "batch = GPUs x micro-batch x n",
    "computing, ms",
    "sent by a GPU, GB",
    "communication, ms",
    "update, ms: ZeRO-2, ZeRO-3",
    "computing",
    "samples/s",
    "days",
    "GPU-hours",
)


def figures(work: Workload, clusters: Sequence[Cluster], each: int = 0) -> dict[str, Any]:
    """For each number of GPUs at ZeRO-2, with the largest micro-batch that fits; the batch is `each` a GPU or, with 0,
    the configured one or the nearest that can be divided. A run is always of the configured number of samples.

    Raises ValueError where `each` is negative.
    """
    if each < 0:
        raise ValueError(f"--each {each}: give 1 sample or more")
    return {"gpu": clusters[0].gpu.title, "mfu": clusters[0].mfu, "rows": [_row(work, c, each) for c in clusters]}


def _row(work: Workload, cluster: Cluster, each: int) -> dict[str, Any]:
    batch, again = each * cluster.gpus or nearest(work, cluster.gpus), work.training.activation_checkpointing
    plans = [Arrangement(cluster.gpus, 2, size, batch, again) for size in micro_batches(batch, cluster.gpus)]
    fitting = [plan for plan in plans if arranged(work, plan).total <= room(cluster.gpu)]
    if not fitting:
        return {"gpus": cluster.gpus, "global_batch": batch, "micro_batch": 0}
    plan = fitting[-1]
    update, other = average(work, plan, cluster), average(work, replace(plan, stage=3), cluster)
    updates = work.total * work.training.global_batch / batch
    return {
        "gpus": cluster.gpus,
        "global_batch": batch,
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "update": asdict(update) | {"seconds": update.seconds},
        "seconds_at_stage_3": other.seconds,
        "computing": update.compute / update.seconds,
        "samples_per_s": batch / update.seconds,
        "days": updates * update.seconds / 86400,
        "gpu_hours": updates * update.seconds / 3600 * cluster.gpus,
        "save_seconds": save_seconds(work, plan, cluster),
    }


def shown(found: dict[str, Any]) -> str:
    lines = [f"{found['config']} on {found['gpu']}, MFU {found['mfu']:g} (assumed)", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for row in found["rows"]:
        if not row["micro_batch"]:
            lines.append(f"| {row['gpus']} | {row['global_batch']}: does not fit |" + " |" * (len(COLUMNS) - 2))
            continue
        update = row["update"]
        cells = [
            f"{row['gpus']:,}",
            f"{row['global_batch']:,} = {row['gpus']:,} x {row['micro_batch']} x {row['accumulation']}",
            f"{1000 * update['compute']:.0f}",
            f"{update['sent'] / 1e9:.1f}",
            f"{1000 * update['communication']:.0f}",
            f"{1000 * update['seconds']:.0f}, {1000 * row['seconds_at_stage_3']:.0f}",
            f"{row['computing']:.0%}",
            f"{row['samples_per_s']:,.0f}",
            f"{row['days']:.2f}",
            f"{row['gpu_hours']:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
