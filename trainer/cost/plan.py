"""What a run needs, from its configuration alone: its models, its kinds of updates, and the memory of a GPU.

`planning_time.py` says how long it takes, `planning_report.py` chooses and shows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from ...models.audiox import count_parameters
from ..core.config import BaseConfig, LoopConfig, PretrainConfig
from ..core.distill_config import DistillConfig
from ..core.gpu_specs import Gpu
from ..core.update_cycle import Phase
from .distill_operations import update_flops
from .operations import forward_flops, training_flops
from .role_bytes import Role, RoleBytes, roles
from .simulated_memory import Activations, Simulated

RESERVED = 0.08  # of a GPU's memory: its context, NCCL, workspaces, fragments of the allocator
MANY = 64  # samples: between 1 and so many, activations are read off a line
BLOCKS = ("latent stream", "condition stream", "attention", "modulation")  # what checkpointing computes again


@dataclass(frozen=True)
class Update:
    """A kind of update, and how a run goes through it."""

    name: str
    role: str  # which it trains
    count: float  # of them in the whole run
    flops: float  # of a sample, on average
    recomputed: float  # besides, with checkpointing
    passes: dict[str, tuple[float, float]]  # forward and backward passes through the weights of each role
    activations: Callable[[int, bool], Activations]  # of a micro-batch, without or with checkpointing


@dataclass(frozen=True)
class Workload:
    """A run, wherever it runs."""

    roles: tuple[Role, ...]
    updates: tuple[Update, ...]
    training: LoopConfig
    tokens: int  # of text a sample
    parts: dict[str, int]  # trained parameters of a model
    forward: dict[str, int]  # operations of a sample's forward pass
    save_every: int  # updates

    @property
    def total(self) -> float:
        """Updates of all kinds."""
        return sum(update.count for update in self.updates)


@dataclass(frozen=True)
class Arrangement:
    """How a run is laid out: what may be chosen without changing what is learnt, but for the batch."""

    gpus: int
    stage: Literal[0, 1, 2, 3] | None  # of all that is trained; None as the configuration has it
    micro_batch: int
    global_batch: int
    checkpointing: bool

    @property
    def accumulation(self) -> int:
        return self.global_batch // (self.gpus * self.micro_batch)


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU, each part where it is largest, and of all together at the worst moment."""

    roles: dict[str, RoleBytes]
    activations: int
    buffers: int  # gradients on their way, and at stage 3 weights that are gathered
    total: int


def workload(config: BaseConfig, on_gpu: bool = True, tokens: int = 0) -> Workload:
    """Of a pretraining or a distillation; `tokens` of text a sample, 0 for the most there can be.

    Raises ValueError for what the arithmetic does not cover.
    """
    tokens = tokens or config.model.text.max_tokens
    if not 0 < tokens <= config.model.text.max_tokens:
        raise ValueError(f"{tokens} text tokens: give 1 to model.text.max_tokens, {config.model.text.max_tokens}")
    assert isinstance(config, PretrainConfig | DistillConfig)
    precision = config.training.precision if isinstance(config, PretrainConfig) else config.precision
    simulated = Simulated(config.model, precision, config.kernels if on_gpu else None, tokens)
    head = [parameter.numel() for parameter in simulated.head.parameters()]
    models = roles(config, simulated.sizes(), head)
    if any(role.zero is not None and role.zero.offload_optimizer for role in models):
        raise ValueError(  # `Role.bytes` does, but does not say which of them are a GPU's
            "zero.offload_optimizer: true, which the arithmetic does not cover; "
            "plan with --set zero.offload_optimizer=false"
        )
    if isinstance(config, DistillConfig):
        updates = _distillation(config, simulated, tokens)
    else:
        updates = _pretraining(config, simulated, tokens)
    return Workload(
        tuple(models),
        tuple(updates),
        config.training,
        tokens,
        count_parameters(simulated.trained),
        forward_flops(config.model, tokens),
        config.checkpoint.every,
    )


def _pretraining(config: BaseConfig, simulated: Simulated, tokens: int) -> list[Update]:
    again = _blocks(config, tokens)
    flops = training_flops(config.model, tokens)
    return [Update("step", "model", config.training.steps, flops, again, {"model": (1, 1)}, _line(simulated.training))]


def _distillation(config: DistillConfig, simulated: Simulated, tokens: int) -> list[Update]:
    """The student's step is taken at its mean. A discriminator's update keeps less than what stands here."""
    settings, cycle, chances = config.distillation, config.cycle, config.distillation.step_probabilities
    before = sum(k * chance for k, chance in enumerate(chances))  # passes up to z at the student's step
    trunk = int(settings.adversarial_weight > 0)
    solving = 0 if config.warm_start.pairs else config.warm_start.ode_steps
    rolled = before if config.warm_start.rollout else 0
    through: dict[Phase, tuple[str, dict[str, tuple[float, float]]]] = {
        Phase.WARM_START: ("student", {"student": (rolled + 1, 1), "teacher": (solving, 0)}),
        Phase.FAKE_WARM_UP: ("fake", {"student": (before + 1, 0), "fake": (1, 1)}),
        Phase.STUDENT: ("student", {"student": (before + 1, 1), "fake": (1, 0), "teacher": (1 + trunk, trunk)}),
        Phase.FAKE: ("fake", {"student": (before + 1, 0), "fake": (1, 1)}),
        Phase.DISCRIMINATOR: (
            "discriminator",
            {"student": (before + 1, 0), "discriminator": (1, 1), "teacher": (2, 0)},
        ),
    }
    own, student = _line(simulated.training), _line(lambda n, again: simulated.student(config, n, again))
    whole, part = _blocks(config, tokens), _blocks(config, tokens, settings.discriminator_blocks)
    again = {Phase.STUDENT: whole + trunk * part, Phase.DISCRIMINATOR: 0}
    total, found = cycle.total_updates(config.training.steps), []
    for phase, (role, passes) in through.items():
        if count := cycle.count((phase,), total):
            flops = sum(chance * update_flops(config, phase, k, tokens) for k, chance in enumerate(chances))
            kept = student if phase is Phase.STUDENT else own
            found.append(Update(phase.value, role, count, flops, again.get(phase, whole), passes, kept))
    return found


def _blocks(config: BaseConfig, tokens: int, n_blocks: int | None = None) -> int:
    """Operations of a forward pass through the blocks."""
    parts = forward_flops(config.model, tokens, n_blocks)
    return sum(parts[name] for name in BLOCKS)


def _line(simulate: Callable[[int, bool], Activations]) -> Callable[[int, bool], Activations]:
    """The same for any number of samples from two simulations. The worst moment of a pass is the larger of several
    that each grow in proportion, so between the two this is at least the truth."""
    simulated = cache(simulate)

    def between(samples: int, checkpointing: bool) -> Activations:
        one, many = simulated(1, checkpointing), simulated(MANY, checkpointing)
        share = (samples - 1) / (MANY - 1)
        kept, peak = (round(a + share * (b - a)) for a, b in ((one.kept, many.kept), (one.peak, many.peak)))
        return Activations(kept, peak)

    return between


def staged(work: Workload, plan: Arrangement) -> dict[str, Role]:
    """The roles by name, with all that is trained at the stage of a plan."""
    if plan.stage is None:
        return {role.name: role for role in work.roles}
    return {r.name: r if r.zero is None else replace(r, zero=replace(r.zero, stage=plan.stage)) for r in work.roles}


def memory(work: Workload, plan: Arrangement, overlap: bool = True, accumulating: bool = True) -> Memory:
    """Of the first rank, which has at least what any other has.

    Some gradients have their place for good (`Role.staying`); of the others only those of the role whose update it is
    are there, and where an update has one micro-batch (not `accumulating`) they come while activations go.
    """
    models = staged(work, plan)
    held = {name: role.bytes(0, plan.gpus) for name, role in models.items()}
    comes = {name: b.gradients - models[name].staying(b.gradients) for name, b in held.items()}
    always = sum(b.total - comes[name] for name, b in held.items())
    stays = sum(role.buckets(overlap) for role in models.values() if role.stage == 3)
    if plan.gpus > 1:
        stays += max((min(role.count, role.live) * role.width for role in models.values() if role.gathered), default=0)
    worst = most = passed = 0
    for update in work.updates:
        role, kept = models[update.role], update.activations(plan.micro_batch, plan.checkpointing).peak
        gradients = comes[role.name]
        buckets = 0 if role.stage == 3 else role.buckets(overlap)
        passing = (kept + gradients if accumulating else max(kept, gradients)) + buckets
        worst = max(worst, passing, gradients + role.reducing())
        most, passed = max(most, kept), max(passed, buckets)
    return Memory(held, most, stays + passed, always + stays + worst)


def arranged(work: Workload, plan: Arrangement) -> Memory:
    """`memory` of an arrangement whose micro-batches divide its batch."""
    return memory(work, plan, accumulating=plan.accumulation > 1)


def room(gpu: Gpu) -> float:
    """Bytes that a run may take."""
    return gpu.memory * (1 - RESERVED)


def largest(work: Workload, plan: Arrangement, gpu: Gpu) -> int:
    """The most samples a micro-batch that fit, 0 where not even one does; it need not divide the batch."""
    low, high = 0, 1 << 16
    while high - low > 1:
        middle = (low + high) // 2
        fits = memory(work, replace(plan, micro_batch=middle)).total <= room(gpu)
        low, high = (middle, high) if fits else (low, middle)
    return low


def micro_batches(global_batch: int, gpus: int) -> Sequence[int]:
    """Those that divide a global batch over so many GPUs; none where the GPUs do not."""
    share, rest = divmod(global_batch, gpus)
    return [] if rest else [size for size in range(1, share + 1) if share % size == 0]
