"""A plan's figures, and how they are shown. Bytes in GB are 10⁹."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from .plan import RESERVED, Arrangement, Workload, arranged, largest, memory, micro_batches, room
from .plan_choice import STAGES, batches, choose, divisors, undivided
from .plan_time import EFFICIENCY, Cluster, average, run_seconds, save_bytes_a_rank, save_seconds, spent

SAVED_EVERY = 1800.0  # seconds between two saves, for the share that they take


def figures(work: Workload, cluster: Cluster) -> dict[str, Any]:
    """Everything that a plan says, as JSON."""
    gpu, training = cluster.gpu, work.training
    configured = Arrangement(
        cluster.gpus, None, training.micro_batch, training.global_batch, training.activation_checkpointing
    )
    choice, wrong = choose(work, cluster), undivided(work, cluster)
    timed = choice.plan if choice else None
    return {
        "gpus": cluster.gpus,
        "gpu": gpu.title,
        "nodes": cluster.nodes,
        "per_node": min(cluster.each, cluster.gpus),
        "assumed": {
            "mfu": cluster.mfu,
            "efficiency_of_links": EFFICIENCY,
            "link_gb_s": gpu.link_bandwidth / 1e9,
            "network_gb_s": (cluster.network or gpu.node_bandwidth) / 1e9,
            "storage_gb_s": cluster.storage / 1e9,
            "reserved": RESERVED,
            "text_tokens": work.tokens,
        },
        "parameters": work.parts,
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
            "divides": not wrong,
            "wrong": wrong,
            "micro_batches": list(micro_batches(training.global_batch, cluster.gpus)),
            "gpus_that_divide": [n for n in divisors(training.global_batch, cluster) if n],
            "global_batches_that_divide": [n for n in batches(training.global_batch, cluster.gpus) if n],
        },
        "room": room(gpu),
        "memory": [_memory(work, replace(configured, stage=stage), cluster) for stage in STAGES],
        "time": [_time(work, replace(timed, stage=stage), cluster) for stage in STAGES] if timed else [],
        "configured": None if wrong else _time(work, configured, cluster),
        "recommended": choice and _time(work, choice.plan, cluster) | {"reason": choice.reason},
    }


def _memory(work: Workload, plan: Arrangement, cluster: Cluster) -> dict[str, Any]:
    """At one stage, with the configured micro-batch."""
    plain, again = (memory(work, replace(plan, checkpointing=c)) for c in (False, True))
    return {
        "stage": plan.stage,
        "micro_batch": plan.micro_batch,
        "roles": {name: asdict(held) for name, held in plain.roles.items()},
        "buffers": plain.buffers,
        "activations": plain.activations,
        "activations_checkpointed": again.activations,
        "total": plain.total,
        "total_checkpointed": again.total,
        "largest_micro_batch": largest(work, replace(plan, checkpointing=False), cluster.gpu),
        "largest_micro_batch_checkpointed": largest(work, replace(plan, checkpointing=True), cluster.gpu),
    }


def _time(work: Workload, plan: Arrangement, cluster: Cluster) -> dict[str, Any]:
    """Of an update on average and of the whole run."""
    update, save = average(work, plan, cluster), save_seconds(work, plan, cluster)
    seconds = run_seconds(work, plan, cluster)
    return {
        "plan": asdict(plan) | {"accumulation": plan.accumulation},
        "memory": arranged(work, plan).total,
        "update": asdict(update) | {"seconds": update.seconds, "in_turn": update.in_turn},
        "each": {u.name: spent(work, u, plan, cluster).seconds for u in work.updates},
        "samples_per_s": plan.global_batch / update.seconds,
        "save_bytes": sum(role.saved() for role in work.roles),
        "save_bytes_a_rank": save_bytes_a_rank(work, plan),
        "save_seconds": save,
        "save_every": work.save_every,
        "save_every_30_minutes": max(1, round(SAVED_EVERY / update.seconds)),
        "save_share": save / (save + work.save_every * update.seconds),
        "save_share_every_30_minutes": save / (save + SAVED_EVERY),
        "updates": work.total,
        "days": seconds / 86400,
        "gpu_hours": seconds / 3600 * plan.gpus,
    }


def shown(found: dict[str, Any]) -> str:
    """The figures as text."""
    assumed, nodes = found["assumed"], found["nodes"]
    where = f"{found['gpus']} x {found['gpu']} ({nodes} node{'s' * (nodes > 1)} of {found['per_node']})"
    lines = [f"{found['config']} on {where}", "", *_amounts(found), "", *_table(_memory_rows(found)), ""]
    if not found["time"]:
        return "\n".join([*lines, "Nothing fits, not even one sample a GPU: take more GPUs, or GPUs with more memory."])
    best = found["recommended"]
    lines += [
        f"ms of an update of {best['plan']['global_batch']} samples in micro-batches of {best['plan']['micro_batch']}; "
        f"assumed: MFU {assumed['mfu']:g}, {assumed['efficiency_of_links']:g} of the speed of links of "
        f"{assumed['link_gb_s']:g} GB/s and a network of {assumed['network_gb_s']:g} GB/s a node",
        *_table(_time_rows(found)),
        "",
        f"a checkpoint    {best['save_bytes'] / 1e9:.1f} GB, {best['save_seconds']:.1f} s at "
        f"{assumed['storage_gb_s']:g} GB/s a node: {best['save_share']:.2%} of the time at checkpoint.every "
        f"{best['save_every']}, {best['save_share_every_30_minutes']:.2%} at {best['save_every_30_minutes']} "
        f"(30 minutes), if training waits for it; beside the training (checkpoint.async_save) it takes "
        f"{best['save_bytes_a_rank'] / 1e9:.1f} GB of host memory a GPU",
    ]
    if found["configured"]:
        lines.append(f"as configured   {_sentence(found['configured'])}")
    return "\n".join([*lines, f"recommended     {_sentence(best)}", f"                {best['reason']}"])


def _amounts(found: dict[str, Any]) -> list[str]:
    """Parameters, operations, the batch."""
    batch = found["batch"]
    accumulation = batch["global_batch"] // (found["gpus"] * batch["micro_batch"])
    divided = f"{batch['global_batch']} = {found['gpus']} GPUs x micro_batch {batch['micro_batch']} x {accumulation}"
    return [
        "parameters, M   " + ", ".join(f"{name} {count / 1e6:.1f}" for name, count in found["parameters"].items()),
        "forward, GFLOP  " + ", ".join(f"{name} {n / 1e9:.1f}" for name, n in found["forward_flops"].items()),
        *(
            f"{u['update']:15} {u['count']:,.0f} x {u['flops_of_an_update'] / 1e12:,.1f} TFLOP, "
            f"{u['flops'] / 1e12:.3f} a sample; checkpointing computes {u['recomputed'] / 1e12:.3f} of them again"
            for u in found["updates"]
        ),
        f"global batch    {batch['wrong'] or divided}",
        f"memory          {found['room'] / 1e9:.1f} GB of a GPU are left to a run; below GB at micro_batch "
        f"{batch['micro_batch']}, without / with checkpointing",
    ]


def _sentence(timed: dict[str, Any]) -> str:
    plan = timed["plan"]
    stage = "" if plan["stage"] is None else f"ZeRO-{plan['stage']}, "
    again = "with" if plan["checkpointing"] else "without"
    return (
        f"{stage}micro_batch {plan['micro_batch']} x {plan['accumulation']} {again} checkpointing: "
        f"{timed['memory'] / 1e9:.1f} GB, {timed['update']['seconds']:.3f} s an update, {timed['days']:.2f} days, "
        f"{timed['gpu_hours']:,.0f} GPU-hours"
    )


def _memory_rows(found: dict[str, Any]) -> list[list[str]]:
    rows = [["ZeRO", "role", "weights", "gradients", "optimizer", "EMA"]]
    rows[0] += ["activations", "buffers", "at most", "largest micro-batch"]
    for at in found["memory"]:
        rows += [
            [f"{at['stage']}", name, *(f"{count / 1e9:.2f}" for count in held.values())]
            for name, held in at["roles"].items()
        ]
        rows[-1] += [
            f"{at['activations'] / 1e9:.1f} / {at['activations_checkpointed'] / 1e9:.1f}",
            f"{at['buffers'] / 1e9:.1f}",
            f"{at['total'] / 1e9:.1f} / {at['total_checkpointed'] / 1e9:.1f}",
            f"{at['largest_micro_batch']} / {at['largest_micro_batch_checkpointed']}",
        ]
    return rows


def _time_rows(found: dict[str, Any]) -> list[list[str]]:
    rows = [["ZeRO", "computing", "optimizer", "communication", "of it not hidden", "update", "if nothing is hidden"]]
    rows[0] += ["samples/s", "GB from a GPU", "GB from a node", "days", "GPU-hours"]
    for at in found["time"]:
        update = at["update"]
        ms = [update[name] for name in ("compute", "optimizer", "communication", "exposed", "seconds", "in_turn")]
        rows.append([f"{at['plan']['stage']}", *(f"{1000 * value:.1f}" for value in ms)])
        rows[-1] += [f"{at['samples_per_s']:,.0f}", f"{update['sent'] / 1e9:.2f}", f"{update['between'] / 1e9:.2f}"]
        rows[-1] += [f"{at['days']:.2f}", f"{at['gpu_hours']:,.0f}"]
    return rows


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns; a row may be shorter than the first."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=False)) for row in rows]
