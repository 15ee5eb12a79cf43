"""Bytes of the tensors that a trained role keeps on a rank: as they are, and by arithmetic.

Activations, and buffers that come and go within a step, are not in it.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from torch import Tensor

from ..core.config import BaseConfig, PretrainConfig, ZeroConfig
from ..core.distill_config import DistillConfig

PERSISTENT = 100_000  # DeepSpeed's default of stage3_param_persistence_threshold
BUCKET = 500_000_000  # and of reduce_bucket_size, in elements
LIVE = 1_000_000_000  # and of stage3_max_live_parameters and stage3_max_reuse_distance
GROUP = 1_000_000_000  # and of sub_group_size, in elements of a rank's share
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
    sizes: Sequence[int],
    zero: ZeroConfig,
    precision: str,
    rank: int,
    ranks: int,
    persistent: int = PERSISTENT,
    group: int = GROUP,
    accumulating: bool = False,
) -> RoleBytes:
    """By arithmetic, for parameters of these sizes (elements, in the module's order) under AdamW; with an EMA, as the
    student has one.

    Every rank keeps fp32 masters, both moments and the EMA of its own share: a `ranks`-th of all, or all of them at
    stage 0. What it computes with, and the gradients, are shared out as the stage says; at stage 3 every rank keeps the
    parameters of fewer than `persistent` elements whole besides, and AdamW counts the steps of every `group` elements.

    With offload the host's memory is counted too, where DeepSpeed keeps the gradients of the masters for good, at
    stages 1 and 2 the masters once more in the precision of the weights, and at stage 2 in fp32, if an update has
    several micro-batches (`accumulating`), their sum. Its scratch of twice the largest parameter is not in it.
    """
    count, low = sum(sizes), 2 if precision == "bf16" else 4
    if zero.stage == 0:
        return RoleBytes(4 * count, 4 * count, 8 * count + STEP * len(sizes), 4 * count)
    if zero.stage == 3:
        share = sum(math.ceil(size / ranks) for size in sizes)
        kept = sum(math.ceil(size / ranks) * ranks for size in sizes if size < persistent) if ranks > 1 else 0
        steps = _groups([math.ceil(size / ranks) for size in sizes], group)
        gradients = 4 * share * (2 if zero.offload_optimizer else 1)
        return RoleBytes(low * (share + kept) + 4 * share, gradients, 8 * share + STEP * steps, 4 * share)
    whole = math.ceil(count / (ALIGNED * ranks)) * ALIGNED * ranks  # padded, so that it can be shared out
    share = whole // ranks
    start, end = rank * share, (rank + 1) * share
    weights = low * whole + 4 * share
    if zero.offload_optimizer:
        weights, gradients = weights + low * share, 4 * share
        if precision == "bf16":
            gradients += 4 * share  # summed before they go to the host
        elif zero.stage == 2 and accumulating:
            gradients += 4 * _touching(sizes, start, min(end, count))
    elif precision == "bf16":  # at stage 1 the gradients as they were computed stay beside the fp32 sums
        gradients = 4 * whole + 2 * count if zero.stage == 1 else 4 * share
    else:
        gradients = 4 * _touching(sizes, start, end)
    return RoleBytes(weights, gradients, 8 * share + STEP, 4 * share)


def frozen_bytes(sizes: Sequence[int], precision: str, sharded: bool, ranks: int) -> RoleBytes:
    """By arithmetic, for a model that nobody trains: a copy on every rank, or all of it shared out."""
    low = 2 if precision == "bf16" else 4
    return RoleBytes(low * sum(math.ceil(size / ranks) if sharded else size for size in sizes), 0, 0, 0)


@dataclass(frozen=True)
class Role:
    """A model on every rank: one that is trained, or with `zero` None one that nobody trains."""

    name: str
    sizes: tuple[int, ...]  # elements of its parameters, in the module's order
    precision: str
    zero: ZeroConfig | None
    ema: bool = False
    sharded: bool = False  # if nobody trains it
    persistent: int = PERSISTENT
    bucket: int = BUCKET
    live: int = LIVE  # elements that may be gathered at a time
    reuse: int = LIVE  # what is used again before so many others stays gathered
    group: int = GROUP

    @property
    def stage(self) -> int | None:
        return None if self.zero is None else self.zero.stage

    @property
    def count(self) -> int:
        return sum(self.sizes)

    @property
    def width(self) -> int:
        """Bytes of an element that it computes with."""
        return 4 if self.precision == "fp32" or self.stage == 0 else 2

    def bytes(self, rank: int, ranks: int, accumulating: bool = False) -> RoleBytes:
        """What its tensors take on a rank; with offload, on it and its host, in updates of one micro-batch or more."""
        if self.zero is None:
            return frozen_bytes(self.sizes, self.precision, self.sharded, ranks)
        more = self.persistent, self.group, accumulating
        held = role_bytes(self.sizes, self.zero, self.precision, rank, ranks, *more)
        return held if self.ema else replace(held, ema=0)

    def saved(self) -> int:
        """Bytes of a checkpoint, of all ranks together: fp32 weights, both moments, the moving average."""
        return 0 if self.zero is None else 4 * self.count * (4 if self.ema else 3)

    @property
    def late(self) -> bool:
        """Whether its gradients are reduced after the last backward pass: without ZeRO, and by what DeepSpeed takes at
        stage 1 for gradients that are summed in another precision."""
        return self.stage == 0 or (self.stage == 1 and self.precision == "bf16")

    def staying(self, gradients: int) -> int:
        """Of the bytes of its gradients those that stay between updates: at stage 3 all, and where the reduction is
        late at stage 1 the fp32 sums."""
        if self.stage == 3:
            return gradients
        return gradients - self.width * self.count if self.late and self.stage == 1 else 0

    def buckets(self, overlap: bool) -> int:
        """Bytes of DeepSpeed's buffers for gradients on their way to other ranks: at stages 1 and 2 there during a
        backward pass, twice where it overlaps with the communication; at stage 3 always."""
        if self.zero is None or self.late:
            return 0
        return self.bucket * self.width * (2 if overlap and self.stage != 3 else 1)

    def reducing(self) -> int:
        """Bytes of the copy in which late gradients are reduced."""
        return self.count * self.width if self.late else 0

    @property
    def gathered(self) -> bool:
        """Whether its weights lie in shares, and come together for every pass."""
        return self.sharded if self.zero is None else self.stage == 3


def roles(config: BaseConfig, model: Sequence[int], head: Sequence[int]) -> list[Role]:
    """The models of a run, given the sizes of a model's parameters and of a discriminator's head."""
    own: Mapping[str, Any] = config.deepspeed.get("zero_optimization", {})
    names = {
        "persistent": ("stage3_param_persistence_threshold", PERSISTENT),
        "bucket": ("reduce_bucket_size", BUCKET),
        "live": ("stage3_max_live_parameters", LIVE),
        "reuse": ("stage3_max_reuse_distance", LIVE),
        "group": ("sub_group_size", GROUP),
    }
    more: dict[str, Any] = {field: int(own.get(name, default)) for field, (name, default) in names.items()}
    if isinstance(config, PretrainConfig):
        return [Role("model", tuple(model), config.training.precision, config.zero, ema=True, **more)]
    assert isinstance(config, DistillConfig)
    teacher = config.teacher
    trained = {"student": config.student, "fake": config.fake, "discriminator": config.discriminator}
    return [
        Role(name, tuple(head if name == "discriminator" else model), r.precision, r.zero, name == "student", **more)
        for name, r in trained.items()
    ] + [Role("teacher", tuple(model), teacher.precision, None, sharded=teacher.sharded, persistent=0)]


def _groups(shares: Iterable[int], most: int) -> int:
    """Groups that DeepSpeed makes of parameters in their order: each is full with the one that reaches `most`."""
    groups = filled = 0
    for share in shares:
        if not filled:
            groups += 1
        filled = filled + share if filled + share < most else 0
    return groups


def _touching(sizes: Sequence[int], start: int, end: int) -> int:
    """Elements of the parameters that reach into [start, end) of all laid end to end, and of the padding in it: where
    gradients are kept as they were computed, one that lies across the border is whole on either side."""
    ends = list(itertools.accumulate(sizes))
    inside = sum(size for size, last in zip(sizes, ends, strict=True) if last > start and last - size < end)
    return inside + max(0, end - max(start, ends[-1]))
