"""The figures of a plan, as JSON and as text. A GB is 10⁹ bytes."""

from dataclasses import asdict, replace
from typing import Any

from tabulate import tabulate

from .planned_memory import (
    RESERVED,
    Layout,
    configured_layout,
    largest_micro_batch,
    micro_batches,
    planned_memory,
    usable_memory,
)
from .planned_time import (
    LINK_EFFICIENCY,
    Cluster,
    average_update_time,
    run_seconds,
    save_bytes_per_rank,
    save_seconds,
    update_time,
)
from .recommendation import (
    batch_problem,
    batches_that_divide,
    gpu_counts_that_divide,
    possible_stages,
    recommend,
)
from .workload import Workload

SAVE_INTERVAL = 1800.0  # seconds between two checkpoints, for the share of time that they take


def plan_figures(work: Workload, cluster: Cluster) -> dict[str, Any]:
    """All figures of a plan, as JSON."""
    gpu, training = cluster.gpu, work.training
    configured = configured_layout(work, cluster.gpus)
    best, problem = recommend(work, cluster), batch_problem(work, cluster)
    stages = possible_stages(work)
    return {
        "gpus": cluster.gpus,
        "gpu": gpu.title,
        "nodes": cluster.nodes,
        "per_node": min(cluster.per_node, cluster.gpus),
        "assumed": {
            "mfu": cluster.mfu,
            "link_efficiency": LINK_EFFICIENCY,
            "link_gb_s": gpu.link_bandwidth / 1e9,
            "network_gb_s": (cluster.network or gpu.node_bandwidth) / 1e9,
            "storage_gb_s": cluster.storage / 1e9,
            "reserved": RESERVED,
            "text_tokens": work.tokens,
        },
        "parameters": work.parameters,
        "forward_flops": work.forward,
        "updates": [
            {
                "update": u.name,
                "trains": u.role,
                "count": u.count,
                "flops": u.flops,  # of a sample, as the next
                "recomputed": u.recomputed,
                "flops_of_an_update": u.flops * training.global_batch,
            }
            for u in work.updates
        ],
        "batch": {
            "global_batch": training.global_batch,
            "micro_batch": training.micro_batch,
            "divides": not problem,
            "problem": problem,
            "micro_batches": list(micro_batches(training.global_batch, cluster.gpus)),
            "gpus_that_divide": [n for n in gpu_counts_that_divide(training.global_batch, cluster) if n],
            "global_batches_that_divide": [n for n in batches_that_divide(training.global_batch, cluster.gpus) if n],
        },
        "usable_memory": usable_memory(gpu),
        "memory": [_memory(work, replace(configured, stage=stage), cluster) for stage in stages],
        "time": [_time(work, replace(best.layout, stage=stage), cluster) for stage in stages] if best else [],
        "configured": None if problem else _time(work, configured, cluster),
        "recommended": best and _time(work, best.layout, cluster) | {"reason": best.reason},
    }


def _memory(work: Workload, layout: Layout, cluster: Cluster) -> dict[str, Any]:
    """The memory at one stage, without and with checkpointing."""
    layouts = [replace(layout, checkpointing=checkpointing) for checkpointing in (False, True)]
    plain, again = (planned_memory(work, one, accumulating=True) for one in layouts)
    largest = [largest_micro_batch(work, one, cluster.gpu) for one in layouts]
    return {
        "stage": layout.stage,
        "micro_batch": layout.micro_batch,
        "roles": {name: asdict(role) for name, role in plain.roles.items()},
        "buffers": plain.buffers,
        "activations": plain.activations,
        "activations_checkpointed": again.activations,
        "total": plain.total,
        "total_checkpointed": again.total,
        "largest_micro_batch": largest[0],
        "largest_micro_batch_checkpointed": largest[1],
    }


def _time(work: Workload, layout: Layout, cluster: Cluster) -> dict[str, Any]:
    """The time of an average update and of the whole run."""
    update, save = average_update_time(work, layout, cluster), save_seconds(work, layout, cluster)
    seconds = run_seconds(work, layout, cluster)
    return {
        "layout": asdict(layout) | {"accumulation": layout.accumulation},
        "memory": planned_memory(work, layout).total,
        "update": asdict(update) | {"seconds": update.seconds, "without_overlap": update.without_overlap},
        "seconds_by_kind": {u.name: update_time(work, u, layout, cluster).seconds for u in work.updates},
        "samples_per_s": layout.global_batch / update.seconds,
        "save_bytes": sum(role.checkpoint_bytes() for role in work.roles),
        "save_bytes_per_rank": save_bytes_per_rank(work, layout),
        "save_seconds": save,
        "save_every": work.save_every,
        "save_every_30_minutes": max(1, round(SAVE_INTERVAL / update.seconds)),
        "save_share": save / (save + work.save_every * update.seconds),
        "save_share_every_30_minutes": save / (save + SAVE_INTERVAL),
        "updates": work.total,
        "days": seconds / 86400,
        "gpu_hours": seconds / 3600 * layout.gpus,
    }


def format_plan(found: dict[str, Any]) -> str:
    """The figures of a plan as text."""
    assumed, nodes = found["assumed"], found["nodes"]
    where = f"{found['gpus']} x {found['gpu']} ({nodes} node{'s' * (nodes > 1)} of {found['per_node']})"
    lines = [f"{found['config']} on {where}", "", *_amounts(found), "", _table(_memory_rows(found)), ""]
    if not found["time"]:
        return "\n".join(
            [*lines, "Nothing fits, not even one sample per GPU: take more GPUs, or GPUs with more memory."]
        )
    best = found["recommended"]
    lines += [
        f"ms per update of {best['layout']['global_batch']} samples in micro-batches of "
        f"{best['layout']['micro_batch']}; assumed: MFU {assumed['mfu']:g}, "
        f"{assumed['link_efficiency']:g} of the speed of links of "
        f"{assumed['link_gb_s']:g} GB/s and a network of {assumed['network_gb_s']:g} GB/s per node",
        _table(_time_rows(found)),
        "",
        f"a checkpoint    {best['save_bytes'] / 1e9:.1f} GB, {best['save_seconds']:.1f} s at "
        f"{assumed['storage_gb_s']:g} GB/s per node: {best['save_share']:.2%} of the time at checkpoint.every "
        f"{best['save_every']}, {best['save_share_every_30_minutes']:.2%} at {best['save_every_30_minutes']} "
        f"(30 minutes), if training waits for it; written asynchronously (checkpoint.async_save) it takes "
        f"{best['save_bytes_per_rank'] / 1e9:.1f} GB of host memory per GPU",
    ]
    if found["configured"]:
        lines.append(f"as configured   {_sentence(found['configured'])}")
    return "\n".join([*lines, f"recommended     {_sentence(best)}", f"                {best['reason']}"])


def _amounts(found: dict[str, Any]) -> list[str]:
    """Parameters, operations, the batch."""
    batch = found["batch"]
    accumulation = batch["global_batch"] // (found["gpus"] * batch["micro_batch"])
    product = f"{batch['global_batch']} = {found['gpus']} GPUs x micro_batch {batch['micro_batch']} x {accumulation}"
    return [
        "parameters, M   " + ", ".join(f"{name} {count / 1e6:.1f}" for name, count in found["parameters"].items()),
        "forward, GFLOP  " + ", ".join(f"{name} {n / 1e9:.1f}" for name, n in found["forward_flops"].items()),
        *(
            f"{u['update']:15} {u['count']:,.0f} x {u['flops_of_an_update'] / 1e12:,.1f} TFLOP, "
            f"{u['flops'] / 1e12:.3f} per sample; checkpointing recomputes {u['recomputed'] / 1e12:.3f} of them"
            for u in found["updates"]
        ),
        f"global batch    {batch['problem'] or product}",
        f"memory          {found['usable_memory'] / 1e9:.1f} GB of a GPU are usable; below, GB at micro_batch "
        f"{batch['micro_batch']}, without / with checkpointing",
    ]


def _sentence(timed: dict[str, Any]) -> str:
    layout = timed["layout"]
    stage = "" if layout["stage"] is None else f"ZeRO-{layout['stage']}, "
    again = "with" if layout["checkpointing"] else "without"
    return (
        f"{stage}micro_batch {layout['micro_batch']} x {layout['accumulation']} {again} checkpointing: "
        f"{timed['memory'] / 1e9:.1f} GB, {timed['update']['seconds']:.3f} s per update, {timed['days']:.2f} days, "
        f"{timed['gpu_hours']:,.0f} GPU-hours"
    )


def _memory_rows(found: dict[str, Any]) -> list[list[str]]:
    rows = [["ZeRO", "role", "weights", "gradients", "optimizer", "EMA"]]
    rows[0] += ["activations", "buffers", "at most", "largest micro-batch"]
    for at in found["memory"]:
        rows += [
            [f"{at['stage']}", name, *(f"{count / 1e9:.2f}" for count in role.values())]
            for name, role in at["roles"].items()
        ]
        rows[-1] += [
            f"{at['activations'] / 1e9:.1f} / {at['activations_checkpointed'] / 1e9:.1f}",
            f"{at['buffers'] / 1e9:.1f}",
            f"{at['total'] / 1e9:.1f} / {at['total_checkpointed'] / 1e9:.1f}",
            f"{at['largest_micro_batch']} / {at['largest_micro_batch_checkpointed']}",
        ]
    return rows


def _time_rows(found: dict[str, Any]) -> list[list[str]]:
    rows = [["ZeRO", "computing", "optimizer", "communication", "not hidden", "update", "without overlap"]]
    rows[0] += ["samples/s", "GB from a GPU", "GB from a node", "days", "GPU-hours"]
    for at in found["time"]:
        update = at["update"]
        ms = [
            update[name] for name in ("compute", "optimizer", "communication", "exposed", "seconds", "without_overlap")
        ]
        rows.append([f"{at['layout']['stage']}", *(f"{1000 * value:.1f}" for value in ms)])
        rows[-1] += [f"{at['samples_per_s']:,.0f}", f"{update['sent'] / 1e9:.2f}", f"{update['between'] / 1e9:.2f}"]
        rows[-1] += [f"{at['days']:.2f}", f"{at['gpu_hours']:,.0f}"]
    return rows


def _table(rows: list[list[str]]) -> str:
    return tabulate(rows, headers="firstrow", tablefmt="plain", disable_numparse=True, stralign="right")
