"""A run as a plan sees it, wherever it runs: its models, and its kinds of updates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from ...models.lora import LoraConfig
from ...models.networks import count_parameters
from ..core.config import BaseConfig, LoopConfig, PretrainConfig
from ..core.distill_config import DistillConfig
from ..core.update_cycle import Phase
from .operations import forward_flops, recomputed_flops, update_flops
from .passes import Gradient, Pass, distillation_passes, pretraining_passes, step_probabilities
from .role_bytes import PlannedRole, planned_roles
from .simulated_memory import Activations, SimulatedModel

LINE_END = 64  # samples: up to this many, activations are interpolated

ActivationCount = Callable[[int, bool], Activations]  # of a micro-batch's samples, with or without checkpointing


@dataclass(frozen=True)
class UpdateKind:
    """A kind of update. Operations are of one sample, and like the passes a mean over the student's steps."""

    name: str
    role: str  # which it trains
    count: float  # of them in the whole run
    flops: float
    recomputed: float  # operations that checkpointing adds
    passes: dict[str, tuple[float, float]]  # forward and backward passes through the weights of each role
    activations: ActivationCount


@dataclass(frozen=True)
class Workload:
    """A run, wherever it runs."""

    roles: tuple[PlannedRole, ...]
    updates: tuple[UpdateKind, ...]
    training: LoopConfig
    tokens: int  # of text per sample
    parameters: dict[str, int]  # of a model, by part
    forward: dict[str, int]  # operations of a sample's forward pass
    save_every: int  # updates

    @property
    def total(self) -> float:
        """Updates of all kinds."""
        return sum(update.count for update in self.updates)


def workload(config: BaseConfig, on_gpu: bool = True, tokens: int = 0) -> Workload:
    """The workload of a pretraining or a distillation with `tokens` of text per sample; 0 means the most there can be.

    Raises ValueError for what the arithmetic does not cover.
    """
    tokens = tokens or config.model.text.max_tokens
    if not 0 < tokens <= config.model.text.max_tokens:
        raise ValueError(f"{tokens} text tokens: give 1 to model.text.max_tokens, {config.model.text.max_tokens}")
    assert isinstance(config, PretrainConfig | DistillConfig)
    precision = config.training.precision if isinstance(config, PretrainConfig) else config.precision
    trunk = (1, 1)
    if isinstance(config, DistillConfig):
        trunk = config.distillation.discriminator_blocks, config.distillation.discriminator_heads
    kernels = config.kernels if on_gpu else None

    @cache
    def simulated(lora: LoraConfig | None) -> SimulatedModel:
        recompute = config.training.recompute_swiglu
        return SimulatedModel(config.model, precision, kernels, tokens, trunk, lora, recompute)

    lora = config.lora if isinstance(config, PretrainConfig) else None
    own = simulated(lora)
    head = [parameter.numel() for parameter in own.head.parameters()]
    roles = config.adapted if isinstance(config, DistillConfig) else {}
    adapters = {name: simulated(role.lora).sizes() for name, role in roles.items()}
    models = planned_roles(config, own.sizes(), head, own.sizes(trained=False), adapters, own.int8_bytes())
    if any(role.zero is not None and role.zero.offload_optimizer for role in models):
        raise ValueError(  # `PlannedRole.bytes` does, but does not say which of them are a GPU's
            "zero.offload_optimizer: true, which the arithmetic does not cover; "
            "plan with --set zero.offload_optimizer=false"
        )
    if isinstance(config, DistillConfig):
        updates = _distillation(config, simulated, tokens)
    else:
        passes, activations = pretraining_passes(lora), _interpolated(own.training)
        updates = [_update_kind("step", config.training.steps, [(1.0, passes)], activations, config, tokens)]
    return Workload(
        tuple(models),
        tuple(updates),
        config.training,
        tokens,
        count_parameters(own.trained) | ({"trained": sum(own.sizes())} if lora else {}),
        forward_flops(config.model, tokens),
        config.checkpoint.every,
    )


def _distillation(
    config: DistillConfig, simulated: Callable[[LoraConfig | None], SimulatedModel], tokens: int
) -> list[UpdateKind]:
    """The kinds of updates that the cycle has. A discriminator's update keeps less than is planned for it."""
    student, fake = simulated(config.student.lora), simulated(config.fake.lora)
    fakes = {Phase.FAKE, Phase.FAKE_WARM_UP}
    alone = {True: _interpolated(fake.training), False: _interpolated(student.training)}
    matching = _interpolated(lambda samples, checkpointing: student.student(config, samples, checkpointing))
    cycle, kinds = config.cycle, []
    total = cycle.total_updates(config.training.steps)
    for phase in Phase:
        if count := cycle.count((phase,), total):
            chances = enumerate(step_probabilities(config, phase))
            passes = [(chance, distillation_passes(config, phase, k)) for k, chance in chances]
            activations = matching if phase is Phase.STUDENT else alone[phase in fakes]
            kinds.append(_update_kind(phase.value, count, passes, activations, config, tokens))
    return kinds


def _update_kind(
    name: str,
    count: float,
    alternatives: Sequence[tuple[float, Sequence[Pass]]],
    activations: ActivationCount,
    config: BaseConfig,
    tokens: int,
) -> UpdateKind:
    """`alternatives` are the lists of passes that an update of this kind may have, each with its probability."""
    (role,) = {one.role for _, passes in alternatives for one in passes if one.gradient is Gradient.WEIGHTS}
    through: dict[str, tuple[float, float]] = {}
    for chance, passes in alternatives:
        for one in passes:
            forward, backward = through.get(one.role, (0.0, 0.0))
            more = chance * one.count
            through[one.role] = forward + more, backward + more * (one.gradient is not Gradient.NONE)
    flops, recomputed = (
        sum(chance * count_flops(config.model, passes, tokens) for chance, passes in alternatives)
        for count_flops in (update_flops, recomputed_flops)
    )
    return UpdateKind(name, role, count, flops, recomputed, through, activations)


def _interpolated(simulate: ActivationCount) -> ActivationCount:
    """The same for any number of samples from two simulations. The worst moment of a pass is the largest of several
    that each grow in proportion, so between the two this is never below the truth."""
    simulated = cache(simulate)

    def between(samples: int, checkpointing: bool) -> Activations:
        one, many = simulated(1, checkpointing), simulated(LINE_END, checkpointing)
        share = (samples - 1) / (LINE_END - 1)
        kept, peak = (round(a + share * (b - a)) for a, b in ((one.saved, many.saved), (one.peak, many.peak)))
        return Activations(kept, peak)

    return between
