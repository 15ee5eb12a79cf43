"""How long the updates of a plan take: operations at an assumed utilisation, and bytes at the speeds of data sheets.

Nothing here was measured. A collective operation is reckoned as a ring: each GPU sends (n-1)/n of the vector to the
next, once to gather it or to reduce and scatter it, twice to reduce it for all, and the ring leaves each node once.
DeepSpeed reduces for all at stages 1 and 2 too, where each rank keeps a share (`use_multi_rank_bucket_allreduce`).
"""

import math
from dataclasses import dataclass

from ..core.gpu_specs import Gpu
from .plan import Arrangement, Update, Workload, staged
from .role_bytes import Role

# Assumed. Public figures: 0.46 of 8 H100 for 2.65 B parameters (llm-foundry), 0.40 for 24 layers of width 1536.
MFU = 0.4
EFFICIENCY = 0.8  # assumed: of a link's speed, in collective operations on large vectors
HOP = 5e-6  # assumed: seconds from a node to the next
STATE = 42  # bytes an optimizer step reads and writes of an element: weights, moments, gradient, EMA, a bf16 copy


@dataclass(frozen=True)
class Cluster:
    gpu: Gpu
    gpus: int
    each: int = 8  # GPUs a node
    network: float = 0.0  # bytes/s out of a node; 0 for what is usual with such GPUs
    mfu: float = MFU
    storage: float = 2e9  # bytes/s that a node can write

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.each < 1:
            raise ValueError(f"{self.gpus} GPUs in nodes of {self.each}: give at least 1 of both")
        if self.gpus > self.each and self.gpus % self.each:
            raise ValueError(f"{self.gpus} GPUs do not fill nodes of {self.each}: give a multiple, or --per-node")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"an MFU of {self.mfu}: it is above 0 and at most 1")
        if self.network < 0 or self.storage <= 0:
            raise ValueError("speeds of network and storage have to be above 0")

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.each)

    @property
    def speed(self) -> float:
        """Bytes/s of the slowest link of a ring."""
        return (
            self.gpu.link_bandwidth
            if self.nodes == 1
            else min(self.gpu.link_bandwidth, self.network or self.gpu.node_bandwidth)
        )

    def seconds(self, sent: float, calls: int) -> float:
        """For collective operations in which each GPU sends so many bytes in all."""
        if self.gpus == 1:
            return 0.0
        return sent / (self.speed * EFFICIENCY) + calls * (self.nodes - 1) * HOP


@dataclass(frozen=True)
class Spent:
    """Seconds and bytes of an update, or of many on average."""

    compute: float
    optimizer: float
    communication: float  # all of it
    exposed: float  # what does not go on behind the passes, where it can
    sent: float  # bytes from each GPU to the next
    between: float  # bytes out of each node

    @property
    def seconds(self) -> float:
        return self.compute + self.optimizer + self.exposed

    @property
    def in_turn(self) -> float:
        """Seconds if nothing went on at the same time."""
        return self.compute + self.optimizer + self.communication


@dataclass(frozen=True)
class _Traffic:
    """What each GPU sends: bytes and collective operations."""

    sent: float = 0.0
    calls: int = 0


def spent(work: Workload, update: Update, plan: Arrangement, cluster: Cluster) -> Spent:
    """Of one update of a kind, whose passes are all reckoned at the precision of the role that it trains."""
    models = staged(work, plan)
    role = models[update.role]
    speed = cluster.mfu * (cluster.gpu.fp32 if role.precision == "fp32" else cluster.gpu.flops)
    stage = role.stage or 0
    again = update.recomputed if plan.checkpointing else 0.0
    passes = plan.micro_batch * (update.flops + again) / speed
    backward = min(passes, plan.micro_batch * (2 * work.forward["total"] + again) / speed)
    reduced, gathered, after = _reduced(role, plan.gpus), _gathered(models, update, plan.gpus), _after(role, plan.gpus)
    seconds = [cluster.seconds(t.sent, t.calls) for t in (reduced, gathered, after)]
    reductions = plan.accumulation if stage >= 2 else 1  # stages 0 and 1 wait for the last micro-batch
    hidden = max(0.0, seconds[0] - backward, seconds[0] + seconds[1] - passes)
    alone = max(0.0, seconds[1] - passes)  # of a micro-batch whose gradients stay where they are
    exposed = reductions * hidden + (plan.accumulation - reductions) * alone + seconds[2]
    if role.late:
        exposed = seconds[0] + plan.accumulation * alone + seconds[2]
    sent = reductions * reduced.sent + plan.accumulation * gathered.sent + after.sent
    return Spent(
        plan.accumulation * passes,
        role.count * STATE / cluster.gpu.memory_bandwidth / (plan.gpus if stage else 1),
        reductions * seconds[0] + plan.accumulation * seconds[1] + seconds[2],
        exposed,
        sent,
        sent if cluster.nodes > 1 else 0.0,
    )


def _reduced(role: Role, gpus: int) -> _Traffic:
    """Of the gradients of a micro-batch, or of a step where they wait for it."""
    times = 1 if role.stage == 3 else 2
    return _Traffic(times * (gpus - 1) / gpus * role.count * role.width, math.ceil(role.count / role.bucket))


def _gathered(models: dict[str, Role], update: Update, gpus: int) -> _Traffic:
    """Of the weights that lie in shares, for the passes of a micro-batch. Of the last layers, between whose forward and
    backward pass few others lie, they stay gathered."""
    sent, calls = 0.0, 0.0
    for name, (forward, backward) in update.passes.items():
        role = models[name]
        if role.gathered:
            sizes = [size for size in role.sizes if size >= role.persistent]
            passes = forward + backward * max(0.0, 1 - role.reuse / 2 / max(1, sum(sizes)))
            sent += passes * sum(sizes) * role.width * (gpus - 1) / gpus
            calls += passes * len(sizes)
    return _Traffic(sent, round(calls))


def _after(role: Role, gpus: int) -> _Traffic:
    """Of the new weights: at stages 1 and 2 all of them, at stage 3 those that stay gathered."""
    if role.stage in (1, 2):
        count, calls = role.count, math.ceil(role.count / role.bucket)
    elif role.stage == 3:
        count, calls = sum(size for size in role.sizes if size < role.persistent), 1
    else:
        return _Traffic()
    return _Traffic((gpus - 1) / gpus * count * role.width, calls)


def average(work: Workload, plan: Arrangement, cluster: Cluster) -> Spent:
    """Of the updates of a whole run."""
    kinds = [(update.count / work.total, spent(work, update, plan, cluster)) for update in work.updates]
    names = ("compute", "optimizer", "communication", "exposed", "sent", "between")
    return Spent(**{name: sum(share * getattr(one, name) for share, one in kinds) for name in names})


def save_bytes_a_rank(work: Workload, plan: Arrangement) -> float:
    """Bytes of a checkpoint that one rank writes; with `checkpoint.async_save` they lie in host memory meanwhile."""
    return sum(role.saved() / (plan.gpus if role.stage else 1) for role in staged(work, plan).values())


def save_seconds(work: Workload, plan: Arrangement, cluster: Cluster) -> float:
    """Of one checkpoint that training waits for; the nodes share the writing, but at stage 0."""
    shares = (role.saved() / (cluster.nodes if role.stage else 1) for role in staged(work, plan).values())
    return sum(shares) / cluster.storage


def run_seconds(work: Workload, plan: Arrangement, cluster: Cluster) -> float:
    """Of a whole run, with its saves, as if it waited for all of them."""
    saves = work.total / work.save_every
    return work.total * average(work, plan, cluster).seconds + saves * save_seconds(work, plan, cluster)
