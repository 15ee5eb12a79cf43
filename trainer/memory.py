"""Bytes of the tensors that a trained role keeps on a rank: as they are, and by arithmetic.

Activations, and buffers that come and go within a step, are not in it.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from torch import Tensor

from .config import ZeroConfig

PERSISTENT = 100_000  # DeepSpeed's default of stage3_param_persistence_threshold
ALIGNED = 2  # elements that a rank's share is a multiple of (DeepSpeed's)
STEP = 4  # AdamW's count of steps


@dataclass(frozen=True)
class RoleBytes:
    """What one role holds on one rank."""

    weights: int  # what it computes with and the fp32 masters of this rank
    gradients: int  # when an update's last micro-batch is through
    optimizer: int
    ema: int

    @property
    def total(self) -> int:
        return sum(astuple(self))


def readable(count: int) -> str:
    """Bytes in the largest unit of which there is one."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 2**10:.1f} KiB"


def held(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the memory behind tensors; what several of them are views of counts once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(storages.values())


def role_bytes(
    sizes: Sequence[int], zero: ZeroConfig, precision: str, rank: int, ranks: int, persistent: int = PERSISTENT
) -> RoleBytes:
    """By arithmetic, for parameters of these sizes (elements, in the module's order) under AdamW, without offload; with
    an EMA, as the student has one.

    Every rank keeps fp32 masters, both moments and the EMA of its own share: a `ranks`-th of all, or all of them at
    stage 0. What it computes with, and the gradients, are shared out as the stage says; at stage 3 every rank keeps the
    parameters of fewer than `persistent` elements whole besides.
    """
    count, low = sum(sizes), 2 if precision == "bf16" else 4
    if zero.stage == 0:
        return RoleBytes(4 * count, 4 * count, 8 * count + STEP * len(sizes), 4 * count)
    if zero.stage == 3:
        share = sum(math.ceil(size / ranks) for size in sizes)
        kept = sum(math.ceil(size / ranks) * ranks for size in sizes if size < persistent) if ranks > 1 else 0
        return RoleBytes(low * (share + kept) + 4 * share, 4 * share, 8 * share + STEP, 4 * share)
    whole = math.ceil(count / (ALIGNED * ranks)) * ALIGNED * ranks  # padded, so that it can be shared out
    share = whole // ranks
    if precision == "bf16":  # at stage 1 the gradients as they were computed stay beside the fp32 sums
        gradients = 4 * whole + 2 * count if zero.stage == 1 else 4 * share
    else:
        gradients = 4 * _touching(sizes, rank * share, (rank + 1) * share)
    return RoleBytes(low * whole + 4 * share, gradients, 8 * share + STEP, 4 * share)


def frozen_bytes(sizes: Sequence[int], precision: str, sharded: bool, ranks: int) -> RoleBytes:
    """By arithmetic, for a model that nobody trains: a copy on every rank, or all of it shared out."""
    low = 2 if precision == "bf16" else 4
    return RoleBytes(low * sum(math.ceil(size / ranks) if sharded else size for size in sizes), 0, 0, 0)


def _touching(sizes: Sequence[int], start: int, end: int) -> int:
    """Elements of the parameters that reach into [start, end) of all laid end to end, and of the padding in it: where
    gradients are kept as they were computed, one that lies across the border is whole on either side."""
    ends = list(itertools.accumulate(sizes))
    inside = sum(size for size, last in zip(sizes, ends, strict=True) if last > start and last - size < end)
    return inside + max(0, end - max(start, ends[-1]))
