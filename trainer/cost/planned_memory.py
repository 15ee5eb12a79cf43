"""The memory of one GPU under a layout of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..core.gpu_specs import Gpu
from .role_bytes import PlannedRole, RoleBytes
from .workload import Workload

RESERVED = 0.08  # of a GPU's memory: its context, NCCL, workspaces, fragments of the allocator
Stage = Literal[0, 1, 2, 3]


@dataclass(frozen=True)
class Layout:
    """The layout of a run over GPUs: values that may be chosen without changing what is learnt, except for the
    batch."""

    gpus: int
    stage: Stage | None  # ZeRO stage of everything that is trained; None: as the configuration has it
    micro_batch: int
    global_batch: int
    checkpointing: bool

    @property
    def accumulation(self) -> int:
        return self.global_batch // (self.gpus * self.micro_batch)


def configured_layout(work: Workload, gpus: int) -> Layout:
    """The layout that the configuration asks for."""
    training = work.training
    return Layout(gpus, None, training.micro_batch, training.global_batch, training.activation_checkpointing)


@dataclass(frozen=True)
class PlannedMemory:
    """Bytes of one GPU: each part at its largest, and the total at the worst moment."""

    roles: dict[str, RoleBytes]
    activations: int
    buffers: int  # gradients on their way, and at stage 3 weights that are gathered
    total: int


def roles_of_layout(work: Workload, layout: Layout) -> dict[str, PlannedRole]:
    """The roles by name, with everything that is trained at the layout's stage."""
    if layout.stage is None:
        return {role.name: role for role in work.roles}
    return {r.name: r if r.zero is None else replace(r, zero=replace(r.zero, stage=layout.stage)) for r in work.roles}


def planned_memory(
    work: Workload, layout: Layout, overlap: bool = True, accumulating: bool | None = None
) -> PlannedMemory:
    """The memory of the first rank, which has at least as much as any other.

    Some gradients stay allocated (`PlannedRole.resident_gradients`). Of the others only those of the role that is
    updated are there. If an update has one micro-batch (not `accumulating`; default: as the layout has it) they come
    while activations go.
    """
    if accumulating is None:
        accumulating = layout.accumulation > 1
    models = roles_of_layout(work, layout)
    states = {name: role.bytes(0, layout.gpus) for name, role in models.items()}
    transient = {name: b.gradients - models[name].resident_gradients(b.gradients) for name, b in states.items()}
    always = sum(b.total - transient[name] for name, b in states.items())
    fixed_buffers = sum(role.bucket_bytes(overlap) for role in models.values() if role.stage == 3)
    if layout.gpus > 1:
        gathered = [
            min(role.count + sum(role.frozen), role.max_live) * role.width
            for role in models.values()
            if role.is_gathered
        ]
        fixed_buffers += max(gathered, default=0)
    worst = activations = transient_buffers = 0
    for update in work.updates:
        role, peak = models[update.role], update.activations(layout.micro_batch, layout.checkpointing).peak
        gradients = transient[role.name]
        buckets = 0 if role.stage == 3 else role.bucket_bytes(overlap)
        in_passes = (peak + gradients if accumulating else max(peak, gradients)) + buckets
        worst = max(worst, in_passes, gradients + role.late_copy_bytes())
        activations, transient_buffers = max(activations, peak), max(transient_buffers, buckets)
    return PlannedMemory(states, activations, fixed_buffers + transient_buffers, always + fixed_buffers + worst)


def usable_memory(gpu: Gpu) -> float:
    """Bytes that a run may take."""
    return gpu.memory * (1 - RESERVED)


def largest_micro_batch(work: Workload, layout: Layout, gpu: Gpu) -> int:
    """The most samples per micro-batch that fit, 0 if not even one does. It need not divide the batch."""
    low, high = 0, 1 << 16
    while high - low > 1:
        middle = (low + high) // 2
        memory = planned_memory(work, replace(layout, micro_batch=middle), accumulating=True)
        low, high = (middle, high) if memory.total <= usable_memory(gpu) else (low, middle)
    return low


def micro_batches(global_batch: int, gpus: int) -> Sequence[int]:
    """The micro-batches that divide a global batch over so many GPUs; none if the GPUs do not divide it."""
    share, rest = divmod(global_batch, gpus)
    return [] if rest else [size for size in range(1, share + 1) if share % size == 0]
