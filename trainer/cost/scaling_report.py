"""One run on more and more GPUs: where they compute, and where they wait for each other."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from tabulate import tabulate

from .planned_memory import Layout, micro_batches, planned_memory, usable_memory
from .planned_time import Cluster, average_update_time, save_seconds
from .recommendation import nearest_batch
from .workload import Workload

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


def scaling_figures(work: Workload, clusters: Sequence[Cluster], samples_per_gpu: int = 0) -> dict[str, Any]:
    """The figures of each cluster at ZeRO-2, with the largest micro-batch that fits. The batch is `samples_per_gpu` per
    GPU or, with 0, the configured one or the nearest that divides. A run always has the configured number of samples.

    Raises ValueError if `samples_per_gpu` is negative.
    """
    if samples_per_gpu < 0:
        raise ValueError(f"--samples-per-gpu {samples_per_gpu}: give 1 sample or more")
    return {
        "gpu": clusters[0].gpu.title,
        "mfu": clusters[0].mfu,
        "rows": [_row(work, c, samples_per_gpu) for c in clusters],
    }


def _row(work: Workload, cluster: Cluster, samples_per_gpu: int) -> dict[str, Any]:
    batch = samples_per_gpu * cluster.gpus or nearest_batch(work, cluster.gpus)
    again = work.training.activation_checkpointing
    layouts = [Layout(cluster.gpus, 2, size, batch, again) for size in micro_batches(batch, cluster.gpus)]
    fitting = [layout for layout in layouts if planned_memory(work, layout).total <= usable_memory(cluster.gpu)]
    if not fitting:
        return {"gpus": cluster.gpus, "global_batch": batch, "micro_batch": 0}
    layout = fitting[-1]
    update, at_stage_3 = (average_update_time(work, replace(layout, stage=stage), cluster) for stage in (2, 3))
    updates = work.total * work.training.global_batch / batch
    return {
        "gpus": cluster.gpus,
        "global_batch": batch,
        "micro_batch": layout.micro_batch,
        "accumulation": layout.accumulation,
        "update": asdict(update) | {"seconds": update.seconds},
        "seconds_at_stage_3": at_stage_3.seconds,
        "computing": update.compute / update.seconds,
        "samples_per_s": batch / update.seconds,
        "days": updates * update.seconds / 86400,
        "gpu_hours": updates * update.seconds / 3600 * cluster.gpus,
        "save_seconds": save_seconds(work, layout, cluster),
    }


def format_scaling(found: dict[str, Any]) -> str:
    """The figures as a table in Markdown."""
    rows = []
    for row in found["rows"]:
        if not row["micro_batch"]:
            rows.append([f"{row['gpus']:,}", f"{row['global_batch']:,}: does not fit"])
            continue
        update = row["update"]
        rows.append(
            [
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
        )
    title = f"{found['config']} on {found['gpu']}, MFU {found['mfu']:g} (assumed)"
    return f"{title}\n\n{tabulate(rows, headers=COLUMNS, tablefmt='github', disable_numparse=True)}"
