"""What the comparisons of ranks cost a training: each alone, taking turns with the same steps without any."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..core.config import ChecksConfig, PretrainConfig
from ..training.pretrain import Pretraining
from ..training.rank_checks import TIMED, RankChecks
from .summary import Column, format_table, spread
from .synthetic_run import random_batch, share_of_rank, start_run

OFF = ChecksConfig(weights_every=0, repeat_every=0, stragglers_every=0)
VARIANTS = {  # each in every step
    "a step": OFF,
    "times measured": replace(OFF, stragglers_every=1),
    "weights compared": replace(OFF, weights_every=1),
    "a micro-batch repeated": replace(OFF, repeat_every=1),
}
COLUMNS = (
    Column("variant", "variant"),
    Column("ms", "ms", ".2f"),
    Column("lowest", "low", ".2f"),
    Column("highest", "high", ".2f"),
    Column("added, ms", "added", ".3f"),
    Column("of steps", "share_of_steps", ".4f"),
    Column("cost, %", "cost", ".3f", 100),
)


def measure(config: PretrainConfig, rounds: int, inner: int) -> dict[str, Any]:
    """Steps with and without each comparison in all of them, taking turns of `inner` steps. What one adds is the median
    of a turn's differences; its cost is that by the share of steps that the configuration compares in. All ranks call
    this.

    Raises ValueError if the configuration asks for what cannot run here.
    """
    config, world, selection = start_run(config)
    trainer, batch = Pretraining(config, world, selection.ops()), share_of_rank(random_batch(config), world)
    trainer.total, step = 10**9, 0

    def turn(checks: RankChecks, own: ChecksConfig) -> float:
        nonlocal step
        world.times.active = own.stragglers_every > 0
        torch.distributed.barrier()
        begin = time.perf_counter()
        for _ in range(inner):
            checks.before(step, batch)
            result = trainer.step(step, batch)
            step += 1
            checks.after(step, result.applied)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - begin) / inner
        checks.compare_now(step)
        return 1000 * seconds

    quiet: Callable[[str], None] = lambda text: None  # noqa: E731
    variants = {name: (RankChecks(own, trainer, world, quiet), own) for name, own in VARIANTS.items()}
    turns = [{name: turn(*variant) for name, variant in variants.items()} for _ in range(rounds + 1)][1:]
    world.times.stop()
    alone, shares = statistics.median(found["a step"] for found in turns), _shares(config.checks)
    rows: list[dict[str, Any]] = []
    for name in variants:
        row: dict[str, Any] = {"variant": name} | spread((found[name] for found in turns), "ms")
        if name in shares:
            row["added"] = statistics.median(found[name] - found["a step"] for found in turns)
            row["share_of_steps"] = shares[name]
            row["cost"] = max(0.0, row["added"]) * shares[name] / alone
        rows.append(row)
    trainer.engine.destroy()
    return {"ranks": world.ranks, "rows": rows, "cost": sum(row.get("cost", 0.0) for row in rows)}


def _shares(checks: ChecksConfig) -> dict[str, float]:
    """In which share of the steps each comparison is made."""
    every = checks.stragglers_every, checks.weights_every, checks.repeat_every
    steps = min(TIMED, checks.stragglers_every), 1, 1
    return {name: n / e if e else 0.0 for name, n, e in zip(list(VARIANTS)[1:], steps, every, strict=True)}


def summary_lines(result: dict[str, Any]) -> list[str]:
    total = f"all comparisons of {result['ranks']} ranks: {100 * result['cost']:.3f} % of the time"
    return [*format_table(result["rows"], COLUMNS), total]
