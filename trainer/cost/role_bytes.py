"""Bytes of the tensors that each role keeps on a rank: counted, and by arithmetic.

Activations, and buffers that come and go within a step, are not included.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from torch import Tensor

from ..core.config import BaseConfig, PretrainConfig, ZeroConfig
from ..core.distill_config import DistillConfig

# DeepSpeed's defaults of settings in zero_optimization, in elements.
PERSISTENCE_THRESHOLD = 100_000  # stage3_param_persistence_threshold
REDUCE_BUCKET = 500_000_000  # reduce_bucket_size
MAX_LIVE = 1_000_000_000  # stage3_max_live_parameters
REUSE_DISTANCE = 1_000_000_000  # stage3_max_reuse_distance
SUB_GROUP = 1_000_000_000  # sub_group_size, of a rank's share
ALIGNMENT = 2  # elements that a rank's share is a multiple of (DeepSpeed's)
STEP_COUNT = 4  # bytes of AdamW's count of steps


@dataclass(frozen=True)
class RoleBytes:
    """Bytes of one role on one rank."""

    weights: int  # those it computes with, and this rank's fp32 masters
    gradients: int  # after an update's last micro-batch
    optimizer: int
    ema: int

    @property
    def total(self) -> int:
        return sum(astuple(self))


def readable(count: int) -> str:
    """Bytes in the largest unit that leaves at least 1."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 2**10:.1f} KiB"


def storage_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the memory behind tensors. Memory that several of them are views of counts once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(storages.values())


def role_bytes(
    sizes: Sequence[int],
    zero: ZeroConfig,
    precision: str,
    rank: int,
    ranks: int,
    persistence_threshold: int = PERSISTENCE_THRESHOLD,
    sub_group: int = SUB_GROUP,
    accumulating: bool = False,
) -> RoleBytes:
    """The bytes of a role by arithmetic, for parameters of these sizes (elements, in the module's order) under AdamW,
    with a moving average as the student has one.

    Every rank keeps fp32 masters, both moments and the moving average of its own share: a `ranks`-th of everything, or
    everything at stage 0. The weights it computes with and the gradients are sharded as the stage says. At stage 3
    every rank also keeps parameters of fewer than `persistence_threshold` elements whole, and AdamW counts the steps of
    every `sub_group` elements.

    With offload the host's memory is counted too. There DeepSpeed always keeps the gradients of the masters, at stages
    1 and 2 a second copy of the masters in the precision of the weights, and at stage 2 in fp32 the sum of the
    gradients, if an update has several micro-batches (`accumulating`). Its scratch memory of twice the largest
    parameter is not included.
    """
    count, low = sum(sizes), 2 if precision == "bf16" else 4
    if zero.stage == 0:
        return RoleBytes(4 * count, 4 * count, 8 * count + STEP_COUNT * len(sizes), 4 * count)
    if zero.stage == 3:
        share = sum(math.ceil(size / ranks) for size in sizes)
        kept = (
            sum(math.ceil(size / ranks) * ranks for size in sizes if size < persistence_threshold) if ranks > 1 else 0
        )
        steps = _groups([math.ceil(size / ranks) for size in sizes], sub_group)
        gradients = 4 * share * (2 if zero.offload_optimizer else 1)
        return RoleBytes(low * (share + kept) + 4 * share, gradients, 8 * share + STEP_COUNT * steps, 4 * share)
    whole = math.ceil(count / (ALIGNMENT * ranks)) * ALIGNMENT * ranks  # padded, so that it can be shared out
    share = whole // ranks
    start, end = rank * share, (rank + 1) * share
    weights = low * whole + 4 * share
    if zero.offload_optimizer:
        weights, gradients = weights + low * share, 4 * share
        if precision == "bf16":
            gradients += 4 * share  # summed before they go to the host
        elif zero.stage == 2 and accumulating:
            gradients += 4 * _overlapping(sizes, start, min(end, count))
    elif precision == "bf16":  # at stage 1 the computed gradients stay, besides the fp32 sums
        gradients = 4 * whole + 2 * count if zero.stage == 1 else 4 * share
    else:
        gradients = 4 * _overlapping(sizes, start, end)
    return RoleBytes(weights, gradients, 8 * share + STEP_COUNT, 4 * share)


def frozen_bytes(
    sizes: Sequence[int], precision: str, sharded: bool, ranks: int, persistence_threshold: int = 0
) -> RoleBytes:
    """The bytes of frozen parameters by arithmetic: a copy on every rank, or sharded over all. Of fewer than
    `persistence_threshold` elements every rank also keeps them whole."""
    low = 2 if precision == "bf16" else 4
    if not sharded:
        return RoleBytes(low * sum(sizes), 0, 0, 0)
    shares = [math.ceil(size / ranks) for size in sizes]
    kept = [n * ranks for n, size in zip(shares, sizes, strict=True) if size < persistence_threshold and ranks > 1]
    return RoleBytes(low * (sum(shares) + sum(kept)), 0, 0, 0)


@dataclass(frozen=True)
class PlannedRole:
    """A model on every rank, trained, or frozen if `zero` is None. Settings of DeepSpeed are in elements."""

    name: str
    sizes: tuple[int, ...]  # elements of its parameters, in the module's order; of a trained model those it trains
    precision: str
    zero: ZeroConfig | None
    ema: bool = False
    sharded: bool = False  # if it is frozen
    frozen: tuple[int, ...] = ()  # elements of the parameters that a trained model does not train
    int8: int = 0  # bytes of its frozen weights in 8 bits, whole on every rank
    persistence_threshold: int = PERSISTENCE_THRESHOLD
    reduce_bucket: int = REDUCE_BUCKET
    max_live: int = MAX_LIVE  # that may be gathered at a time
    reuse_distance: int = REUSE_DISTANCE  # weights used again within it stay gathered
    sub_group: int = SUB_GROUP

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
        """Bytes of its tensors on a rank, with offload those on the host too; in updates of one micro-batch or several
        (`accumulating`)."""
        if self.zero is None:
            return frozen_bytes(self.sizes, self.precision, self.sharded, ranks)
        settings = self.persistence_threshold, self.sub_group, accumulating
        found = role_bytes(self.sizes, self.zero, self.precision, rank, ranks, *settings)
        precision = "fp32" if self.stage == 0 else self.precision
        frozen = frozen_bytes(self.frozen, precision, self.stage == 3, ranks, self.persistence_threshold)
        found = replace(found, weights=found.weights + frozen.weights + self.int8)
        return found if self.ema else replace(found, ema=0)

    def checkpoint_bytes(self) -> int:
        """Bytes of a checkpoint, of all ranks together: fp32 weights, both moments, the moving average."""
        return 0 if self.zero is None else 4 * self.count * (4 if self.ema else 3)

    @property
    def reduces_late(self) -> bool:
        """Whether its gradients are reduced after the last backward pass. That is so without ZeRO, and at stage 1 for
        gradients that are summed in another precision."""
        return self.stage == 0 or (self.stage == 1 and self.precision == "bf16")

    def resident_gradients(self, gradients: int) -> int:
        """The part of its gradients' bytes that stays between updates: at stage 3 all, and at stage 1 the fp32 sums if
        the reduction is late."""
        if self.stage == 3:
            return gradients
        return gradients - self.width * self.count if self.reduces_late and self.stage == 1 else 0

    def bucket_bytes(self, overlap: bool) -> int:
        """Bytes of DeepSpeed's buffers for gradients on their way to other ranks: at stages 1 and 2 during a backward
        pass, twice if it overlaps with the communication; at stage 3 always."""
        if self.zero is None or self.reduces_late:
            return 0
        return self.reduce_bucket * self.width * (2 if overlap and self.stage != 3 else 1)

    def late_copy_bytes(self) -> int:
        """Bytes of the copy in which late gradients are reduced."""
        return self.count * self.width if self.reduces_late else 0

    @property
    def is_gathered(self) -> bool:
        """Whether its weights are sharded, and gathered for every pass."""
        return self.sharded if self.zero is None else self.stage == 3


def planned_roles(
    config: BaseConfig,
    model: Sequence[int],
    head: Sequence[int],
    frozen: Sequence[int] = (),
    adapters: Mapping[str, Sequence[int]] | None = None,
    int8: int = 0,
) -> list[PlannedRole]:
    """The models of a run, given the sizes of the parameters that a model trains, of the discriminator's head, of those
    that a model with adapters does not train, of the adapters of a distillation's roles, whose other weights are the
    teacher's, and the bytes of 8-bit weights."""
    own: Mapping[str, Any] = config.deepspeed.get("zero_optimization", {})
    names = {
        "persistence_threshold": ("stage3_param_persistence_threshold", PERSISTENCE_THRESHOLD),
        "reduce_bucket": ("reduce_bucket_size", REDUCE_BUCKET),
        "max_live": ("stage3_max_live_parameters", MAX_LIVE),
        "reuse_distance": ("stage3_max_reuse_distance", REUSE_DISTANCE),
        "sub_group": ("sub_group_size", SUB_GROUP),
    }
    settings: dict[str, Any] = {field: int(own.get(name, default)) for field, (name, default) in names.items()}
    if isinstance(config, PretrainConfig):
        settings |= {"ema": True, "frozen": tuple(frozen), "int8": int8}
        return [PlannedRole("model", tuple(model), config.training.precision, config.zero, **settings)]
    assert isinstance(config, DistillConfig)
    trained = {"student": config.student, "fake": config.fake, "discriminator": config.discriminator}
    planned = []
    for name, role in trained.items():
        sizes = tuple(head if name == "discriminator" else (adapters or {}).get(name, model))
        planned.append(PlannedRole(name, sizes, role.precision, role.zero, ema=name == "student", **settings))
    precision, sharded = config.teacher.precision, config.teacher.sharded
    teacher = PlannedRole("teacher", tuple(model), precision, None, sharded=sharded)
    return [*planned, replace(teacher, persistence_threshold=0)]


def _groups(shares: Iterable[int], most: int) -> int:
    """The number of groups that DeepSpeed makes of parameters in their order. A group ends with the parameter at which
    it reaches `most`."""
    groups = filled = 0
    for share in shares:
        if not filled:
            groups += 1
        filled = filled + share if filled + share < most else 0
    return groups


def _overlapping(sizes: Sequence[int], start: int, end: int) -> int:
    """Elements of the parameters that overlap [start, end) of all laid end to end, and of the padding in it. Where
    gradients are kept as computed, a parameter that lies across the border is kept whole on both sides."""
    ends = list(itertools.accumulate(sizes))
    inside = sum(size for size, last in zip(sizes, ends, strict=True) if last > start and last - size < end)
    return inside + max(0, end - max(start, ends[-1]))
