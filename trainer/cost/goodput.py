"""Goodput: the share of a run's time in which it makes steps that count, when hardware fails now and then."""

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from ..core.config import BaseConfig
from .planned_time import Cluster
from .scaling_report import scaling_figures
from .workload import Workload

# One unexpected interruption in so many GPU-hours: 419 in 54 days on 16,384 H100 (Llama 3, arXiv:2407.21783).
GPU_HOURS_PER_FAILURE = 50_000.0
READS = 2  # of a checkpoint: its hashes are compared, then it is loaded
COLUMNS = (
    "GPUs",
    "a failure in",
    "noticed, s",
    "started and compiled, s",
    "read, s",
    "steps made again, s",
    "saves",
    "goodput",
)


def goodput_figures(config: BaseConfig, work: Workload, clusters: Sequence[Cluster], restart: float) -> dict[str, Any]:
    """Figures of each cluster, at the batch and the layout of `scaling_figures`. Failures are lost nodes, the most
    expensive ones: noticed after `timeouts.step`. `restart`: seconds until a new start has its nodes and has compiled.
    """
    found = scaling_figures(work, clusters)
    every, copies = config.checkpoint.every, config.checkpoint.local_every
    rows: list[dict[str, float]] = []
    for row, cluster in zip(found["rows"], clusters, strict=True):
        if not row["micro_batch"]:
            rows.append({"gpus": cluster.gpus})
            continue
        step, saving = row["update"]["seconds"], row["save_seconds"]
        between = 3600 * GPU_HOURS_PER_FAILURE / cluster.gpus
        lost = {
            "noticed": config.timeouts.step,
            "restart": restart,
            "read": READS * saving,
            "again": step * (copies or every) / 2,
        }
        saves = saving / (every * step + saving)
        goodput = (1 - saves) / (1 + sum(lost.values()) / between)
        rows.append({"gpus": cluster.gpus, "between": between, **lost, "saves": saves, "goodput": goodput})
    return found | {"rows": rows}


def format_goodput(found: dict[str, Any]) -> str:
    """The figures as a table in Markdown."""
    rows = []
    for row in found["rows"]:
        if "goodput" not in row:
            rows.append([f"{row['gpus']:,}", "does not fit"])
            continue
        seconds = [f"{row[name]:.0f}" for name in ("noticed", "restart", "read", "again")]
        rows.append(
            [
                f"{row['gpus']:,}",
                f"{row['between'] / 3600:,.0f} h",
                *seconds,
                f"{row['saves']:.2%}",
                f"{row['goodput']:.2%}",
            ]
        )
    title = f"{found['config']} on {found['gpu']}, MFU {found['mfu']:g} and all failures (assumed)"
    return f"{title}\n\n{tabulate(rows, headers=COLUMNS, tablefmt='github', disable_numparse=True)}"
