"""The time of updates under a layout: operations at an assumed utilisation, bytes at the speeds of data sheets.

Nothing here was measured. A collective operation is modelled as a ring: each GPU sends (n-1)/n of the vector to the
next, once to gather it or to reduce and scatter it, twice to all-reduce it, and the ring leaves each node once.
DeepSpeed all-reduces at stages 1 and 2 too, where each rank keeps a share (`use_multi_rank_bucket_allreduce`).
"""

import math
from dataclasses import dataclass

from ..core.gpu_specs import Gpu
from .planned_memory import Layout, roles_of_layout
from .role_bytes import PlannedRole
from .workload import UpdateKind, Workload

# Assumed. Public figures: 0.46 of 8 H100 for 2.65 B parameters (llm-foundry), 0.40 for 24 layers of width 1536.
MFU = 0.4
LINK_EFFICIENCY = 0.8  # assumed: of a link's speed, in collective operations on large vectors
HOP_SECONDS = 5e-6  # assumed: from a node to the next
BYTES_PER_STEP = 42  # that an optimizer step reads and writes per element: weights, moments, gradient, EMA, a bf16 copy


@dataclass(frozen=True)
class Cluster:
    gpu: Gpu
    gpus: int
    per_node: int = 8  # GPUs
    network: float = 0.0  # bytes/s out of a node; 0: the usual network of such GPUs
    mfu: float = MFU
    storage: float = 2e9  # bytes/s that a node writes

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.per_node < 1:
            raise ValueError(f"{self.gpus} GPUs in nodes of {self.per_node}: give at least 1 of both")
        if self.gpus > self.per_node and self.gpus % self.per_node:
            raise ValueError(f"{self.gpus} GPUs do not fill nodes of {self.per_node}: give a multiple, or --per-node")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"an MFU of {self.mfu}: it is above 0 and at most 1")
        if self.network < 0 or self.storage <= 0:
            raise ValueError("speeds of network and storage have to be above 0")

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.per_node)

    @property
    def speed(self) -> float:
        """Bytes/s of the slowest link of a ring."""
        return (
            self.gpu.link_bandwidth
            if self.nodes == 1
            else min(self.gpu.link_bandwidth, self.network or self.gpu.node_bandwidth)
        )

    def seconds(self, sent: float, calls: int) -> float:
        """Seconds of collective operations in which each GPU sends so many bytes in total."""
        if self.gpus == 1:
            return 0.0
        return sent / (self.speed * LINK_EFFICIENCY) + calls * (self.nodes - 1) * HOP_SECONDS


@dataclass(frozen=True)
class UpdateTime:
    """Seconds and bytes of an update, or of many on average."""

    compute: float
    optimizer: float
    communication: float  # all of it
    exposed: float  # the part that the passes do not hide
    sent: float  # bytes from each GPU to the next
    between: float  # bytes out of each node

    @property
    def seconds(self) -> float:
        return self.compute + self.optimizer + self.exposed

    @property
    def without_overlap(self) -> float:
        """Seconds if nothing overlapped."""
        return self.compute + self.optimizer + self.communication


@dataclass(frozen=True)
class _Traffic:
    """Bytes that each GPU sends, and collective operations."""

    sent: float = 0.0
    calls: int = 0


def update_time(work: Workload, update: UpdateKind, layout: Layout, cluster: Cluster) -> UpdateTime:
    """The time of one update. All its passes are taken in the precision of the role that it trains."""
    models = roles_of_layout(work, layout)
    role = models[update.role]
    speed = cluster.mfu * (cluster.gpu.fp32 if role.precision == "fp32" else cluster.gpu.flops)
    stage = role.stage or 0
    recomputed = update.recomputed if layout.checkpointing else 0.0
    passes = layout.micro_batch * (update.flops + recomputed) / speed
    backward = min(passes, layout.micro_batch * (2 * work.forward["total"] + recomputed) / speed)
    reduced, gathered = _gradient_traffic(role, layout.gpus), _weight_traffic(models, update, layout.gpus)
    after = _new_weight_traffic(role, layout.gpus)
    seconds = [cluster.seconds(t.sent, t.calls) for t in (reduced, gathered, after)]
    reductions = layout.accumulation if stage >= 2 else 1  # stages 0 and 1 wait for the last micro-batch
    hidden = max(0.0, seconds[0] - backward, seconds[0] + seconds[1] - passes)
    alone = max(0.0, seconds[1] - passes)  # of a micro-batch whose gradients are not reduced yet
    exposed = reductions * hidden + (layout.accumulation - reductions) * alone + seconds[2]
    if role.reduces_late:
        exposed = seconds[0] + layout.accumulation * alone + seconds[2]
    sent = reductions * reduced.sent + layout.accumulation * gathered.sent + after.sent
    return UpdateTime(
        layout.accumulation * passes,
        role.count * BYTES_PER_STEP / cluster.gpu.memory_bandwidth / (layout.gpus if stage else 1),
        reductions * seconds[0] + layout.accumulation * seconds[1] + seconds[2],
        exposed,
        sent,
        sent if cluster.nodes > 1 else 0.0,
    )


def _gradient_traffic(role: PlannedRole, gpus: int) -> _Traffic:
    """Reducing the gradients of a micro-batch, or of a step if they wait for its end."""
    times = 1 if role.stage == 3 else 2
    return _Traffic(times * (gpus - 1) / gpus * role.count * role.width, math.ceil(role.count / role.reduce_bucket))


def _weight_traffic(models: dict[str, PlannedRole], update: UpdateKind, gpus: int) -> _Traffic:
    """Gathering sharded weights for the passes of a micro-batch. The last layers stay gathered from their forward to
    their backward pass, since few others lie between."""
    sent, calls = 0.0, 0.0
    for name, (forward, backward) in update.passes.items():
        role = models[name]
        if role.is_gathered:
            sizes = [size for size in role.sizes + role.frozen if size >= role.persistence_threshold]
            passes = forward + backward * max(0.0, 1 - role.reuse_distance / 2 / max(1, sum(sizes)))
            sent += passes * sum(sizes) * role.width * (gpus - 1) / gpus
            calls += passes * len(sizes)
    return _Traffic(sent, round(calls))


def _new_weight_traffic(role: PlannedRole, gpus: int) -> _Traffic:
    """Gathering the new weights: at stages 1 and 2 all of them, at stage 3 those that stay gathered."""
    if role.stage in (1, 2):
        count, calls = role.count, math.ceil(role.count / role.reduce_bucket)
    elif role.stage == 3:
        count, calls = sum(size for size in role.sizes if size < role.persistence_threshold), 1
    else:
        return _Traffic()
    return _Traffic((gpus - 1) / gpus * count * role.width, calls)


def average_update_time(work: Workload, layout: Layout, cluster: Cluster) -> UpdateTime:
    """The mean over the updates of a whole run."""
    kinds = [(update.count / work.total, update_time(work, update, layout, cluster)) for update in work.updates]
    names = ("compute", "optimizer", "communication", "exposed", "sent", "between")
    return UpdateTime(**{name: sum(share * getattr(one, name) for share, one in kinds) for name in names})


def save_bytes_per_rank(work: Workload, layout: Layout) -> float:
    """Bytes of a checkpoint that one rank writes. With `checkpoint.async_save` host memory holds them meanwhile."""
    return sum(
        role.checkpoint_bytes() / (layout.gpus if role.stage else 1) for role in roles_of_layout(work, layout).values()
    )


def save_seconds(work: Workload, layout: Layout, cluster: Cluster) -> float:
    """Seconds of one checkpoint that training waits for. The nodes share the writing, except at stage 0."""
    shares = (
        role.checkpoint_bytes() / (cluster.nodes if role.stage else 1)
        for role in roles_of_layout(work, layout).values()
    )
    return sum(shares) / cluster.storage


def run_seconds(work: Workload, layout: Layout, cluster: Cluster) -> float:
    """Seconds of a whole run that waits for all its checkpoints."""
    saves = work.total / work.save_every
    return work.total * average_update_time(work, layout, cluster).seconds + saves * save_seconds(work, layout, cluster)
