"""The passes of every kind of update, in one list.

Operations, planned memory, planned time and the benchmark of distillation are derived from it, and
tests/distillation checks the updates themselves against it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby

from ...models.lora import LoraConfig
from ...models.sampler import sampling_timesteps, shifted_timesteps
from ..core.distill_config import DistillConfig
from ..core.update_cycle import Phase


class Gradient(Enum):
    """The tensors that a pass computes the gradient of."""

    NONE = "forward"
    LATENTS = "forward, backward to the latents"
    WEIGHTS = "forward, backward"


@dataclass(frozen=True)
class Pass:
    """Forward passes of a micro-batch through one model, each with its backward pass where there is a gradient."""

    role: str  # "model" in pretraining; "discriminator" is the head alone, whose trunk is the teacher's first blocks
    gradient: Gradient = Gradient.NONE
    count: int = 1  # how often
    samples: int = 1  # per sample of the micro-batch: 2 under guidance, and for data with the student's samples
    blocks: int | None = None  # ends after so many; None: the whole model
    lora: LoraConfig | None = None  # with these adapters, which alone are trained

    @property
    def title(self) -> str:
        part = f", first {self.blocks} blocks" if self.blocks else ""
        double = f", {self.samples} per sample" if self.samples > 1 else ""
        adapters = " (adapters)" if self.lora else ""
        return f"{self.role}{adapters}{part}: {self.gradient.value}{double}"


def pretraining_passes(lora: LoraConfig | None = None) -> tuple[Pass, ...]:
    """The pass of a step that trains everything, or adapters alone."""
    return (Pass("model", Gradient.WEIGHTS, lora=lora),)


def ode_passes(config: DistillConfig, level: float = 1.0) -> tuple[Pass, ...]:
    """The teacher's ODE from a noise level to its end."""
    warm = config.warm_start
    return _teacher_passes(config, shifted_timesteps(warm.ode_steps, warm.ode_shift, level)[:-1])


def _teacher_passes(config: DistillConfig, levels: Sequence[float]) -> tuple[Pass, ...]:
    """Evaluations of the guided teacher at these noise levels. Those in a row that are alike are one entry."""
    branches = [1 if config.distillation.guidance.at(t) == 1 else 2 for t in levels]
    return tuple(Pass("teacher", count=len(list(row)), samples=n) for n, row in groupby(branches))


def matching_passes(config: DistillConfig) -> tuple[Pass, ...]:
    """Of teacher and fake model, for distribution matching."""
    settings = config.distillation
    teacher = Pass("teacher", Gradient.LATENTS if settings.loss == "eq10" else Gradient.NONE, samples=_branches(config))
    fake = Pass("fake", Gradient.NONE if settings.loss == "dmd" else Gradient.LATENTS)
    return (replace(teacher, samples=1), fake, teacher) if settings.guidance_noise_levels else (teacher, fake)


def regression_passes(config: DistillConfig, k: int, paired: bool) -> tuple[Pass, ...]:
    """Of the teacher, for the target of the student's step k."""
    kind, level = config.targets[k], sampling_timesteps(config.sampling)[k]
    if kind == "endpoint":
        return () if paired else ode_passes(config)
    return ode_passes(config, level) if kind == "ode" else _teacher_passes(config, [level])


def distillation_passes(config: DistillConfig, phase: Phase, k: int) -> tuple[Pass, ...]:
    """The passes of one micro-batch, in their order, in an update about the student's step `k`."""
    settings, warm = config.distillation, config.warm_start
    rollout, sample = Pass("student", count=k), Pass("student", count=k + 1)
    passes: tuple[Pass, ...]
    if phase is Phase.WARM_START:
        own = warm.rollout or config.targets[k] != "endpoint"
        passes = (
            replace(rollout, count=k * own),
            *regression_passes(config, k, bool(warm.pairs)),
            Pass("student", Gradient.WEIGHTS),
        )
    elif phase is Phase.STUDENT:
        passes = rollout, Pass("student", Gradient.WEIGHTS)
        if settings.matching_weight:
            passes += matching_passes(config)
        if settings.adversarial_weight:
            passes += (
                Pass("teacher", Gradient.LATENTS, blocks=settings.discriminator_blocks),
                Pass("discriminator", Gradient.LATENTS),
            )
        if settings.regression_weight:
            passes += regression_passes(config, k, paired=False)
    elif phase in (Phase.DISCRIMINATOR, Phase.DISCRIMINATOR_WARM_UP):
        inputs = 2 + (settings.r1_weight > 0) + (settings.contrastive_weight > 0)
        trunk = Pass("teacher", count=inputs, blocks=settings.discriminator_blocks)
        passes = sample, trunk, Pass("discriminator", Gradient.WEIGHTS, samples=inputs)
    else:
        passes = sample, Pass("fake", Gradient.WEIGHTS)
    return tuple(_adapted(config, one) for one in passes if one.count)


def _adapted(config: DistillConfig, one: Pass) -> Pass:
    role = config.adapted.get(one.role)
    return replace(one, lora=role.lora) if role else one


def _branches(config: DistillConfig) -> int:
    """Samples that guidance makes of one."""
    return 1 if config.distillation.teacher_guidance == 1 else 2


def step_probabilities(config: DistillConfig, phase: Phase) -> Sequence[float]:
    """The probability of each of the student's steps in an update."""
    settings = config.distillation
    drawn = settings.step_probabilities
    if phase is Phase.WARM_START:
        return config.warm_start.step_probabilities or [1 / len(drawn)] * len(drawn)
    if phase in (Phase.FAKE, Phase.FAKE_WARM_UP):
        return settings.fake_step_probabilities or drawn
    if phase in (Phase.DISCRIMINATOR, Phase.DISCRIMINATOR_WARM_UP):
        return settings.discriminator_step_probabilities or drawn
    return drawn


def count_passes(passes: Sequence[Pass]) -> Counter[Pass]:
    """The number of passes of each kind, under a key whose own count is 1."""
    counts = Counter[Pass]()
    for one in passes:
        counts[replace(one, count=1)] += one.count
    return counts
