"""The passes of every kind of update, in one list.

Operations, planned memory, planned time and the benchmark of distillation are derived from it, and
tests/training/distillation checks the updates themselves against it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

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

    @property
    def title(self) -> str:
        part = f", first {self.blocks} blocks" if self.blocks else ""
        double = f", {self.samples} per sample" if self.samples > 1 else ""
        return f"{self.role}{part}: {self.gradient.value}{double}"


PRETRAINING = (Pass("model", Gradient.WEIGHTS),)


def endpoint_pass(config: DistillConfig) -> Pass:
    """The teacher's guided ODE from noise to its endpoint."""
    return Pass("teacher", count=config.warm_start.ode_steps, samples=_branches(config))


def distillation_passes(config: DistillConfig, phase: Phase, k: int) -> tuple[Pass, ...]:
    """The passes of one micro-batch, in their order, in an update about the student's step `k`."""
    settings, warm = config.distillation, config.warm_start
    rollout, sample = Pass("student", count=k), Pass("student", count=k + 1)
    passes: tuple[Pass, ...]
    if phase is Phase.WARM_START:
        passes = () if warm.pairs else (endpoint_pass(config),)
        passes += replace(rollout, count=k * warm.rollout), Pass("student", Gradient.WEIGHTS)
    elif phase is Phase.STUDENT:
        through_teacher = Gradient.LATENTS if settings.loss == "eq10" else Gradient.NONE
        through_fake = Gradient.NONE if settings.loss == "dmd" else Gradient.LATENTS
        passes = rollout, Pass("student", Gradient.WEIGHTS)
        passes += Pass("teacher", through_teacher, samples=_branches(config)), Pass("fake", through_fake)
        if settings.adversarial_weight:
            passes += (
                Pass("teacher", Gradient.LATENTS, blocks=settings.discriminator_blocks),
                Pass("discriminator", Gradient.LATENTS),
            )
    elif phase is Phase.DISCRIMINATOR:
        trunk = Pass("teacher", count=2, blocks=settings.discriminator_blocks)
        passes = sample, trunk, Pass("discriminator", Gradient.WEIGHTS, samples=2)
    else:
        passes = sample, Pass("fake", Gradient.WEIGHTS)
    return tuple(one for one in passes if one.count)


def _branches(config: DistillConfig) -> int:
    """Samples that guidance makes of one."""
    return 1 if config.distillation.teacher_guidance == 1 else 2


def step_probabilities(config: DistillConfig, phase: Phase) -> Sequence[float]:
    """The probability of each of the student's steps in an update. The warm start takes all alike."""
    drawn = config.distillation.step_probabilities
    return [1 / len(drawn)] * len(drawn) if phase is Phase.WARM_START else drawn


def count_passes(passes: Sequence[Pass]) -> Counter[Pass]:
    """The number of passes of each kind, under a key whose own count is 1."""
    counts = Counter[Pass]()
    for one in passes:
        counts[replace(one, count=1)] += one.count
    return counts
