"""The configuration of a distillation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...models.audiox import SamplingConfig
from ...models.strict import NonNegative, NonNegativeFloat, Positive, PositiveFloat
from .config import BaseConfig, OptimizerConfig, ScheduleConfig, ZeroConfig, load_pretrain_config
from .config_reader import parse_file, read_config
from .update_cycle import UpdateCycle


@dataclass(frozen=True)
class RoleConfig:
    """Training of the student, the fake model or the discriminator. The schedule counts the model's own updates."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    precision: Literal["fp32", "bf16"] = "bf16"

    def __post_init__(self) -> None:
        if self.zero.stage == 0:
            raise ValueError("zero.stage: 0, where DeepSpeed computes in bf16 in some forwards only; set 1, 2 or 3")


@dataclass(frozen=True)
class TeacherConfig:
    """The frozen teacher. The discriminator reads the output of its first blocks."""

    sharded: bool = False  # sharded over the ranks by ZeRO-3; by default every rank has a copy
    precision: Literal["fp32", "bf16"] = "bf16"


def precision_overrides(precision: str) -> list[str]:
    """Overrides that make every model compute in this precision."""
    return [f"{role}.precision={precision}" for role in ("student", "fake", "discriminator", "teacher")]


PRESETS: dict[str, tuple[int, int, int]] = {"paper": (5, 1, 1), "dmd2": (1, 5, 1), "even": (1, 1, 1)}


@dataclass(frozen=True)
class UpdatesConfig:
    """Updates of each model per round (section VI-A), and of the fake model alone before the first round."""

    preset: Literal["paper", "dmd2", "even"] = "paper"  # 5:1:1, 1:5:1, 1:1:1
    student: Positive | None = None  # by default the preset's
    fake: Positive | None = None
    discriminator: Positive | None = None
    fake_warm_up: NonNegative = 0

    @property
    def counts(self) -> tuple[int, int, int]:
        """Updates per round of student, fake model and discriminator."""
        student, fake, discriminator = PRESETS[self.preset]
        return self.student or student, self.fake or fake, self.discriminator or discriminator


@dataclass(frozen=True)
class WarmStartConfig:
    """Regression of the student on the endpoints of the teacher's guided ODE, before the first round."""

    updates: NonNegative = 0
    pairs: str = ""  # folder made by launch/pairs.py; without one every update solves its own ODE
    ode_steps: Positive = 50  # of the ODE
    ode_shift: PositiveFloat = 1.0  # of these steps, as in `sampling`
    rollout: bool = False  # regress from where the student's own steps lead, not from the endpoint with noise added
    lr: PositiveFloat | None = None  # the student's during the warm start; by default its optimizer's


@dataclass(frozen=True)
class DistillationConfig:
    """The student's objective (section V)."""

    step_probabilities: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)  # of training each step, the noisiest first
    teacher_guidance: float = 6.0  # the student learns guided sampling, and needs none itself
    loss: Literal["dmd", "eq10", "eq10_sg_teacher"] = "dmd"
    loss_weight: Literal["one", "kl"] = "one"  # ω_τ
    noise_range: tuple[float, ...] = (0.02, 0.98)  # noise levels τ of teacher and fake model
    adversarial_weight: NonNegativeFloat = 1.0  # λ_adv; at 0 the discriminator is not trained either
    discriminator_noise_range: tuple[float, ...] = (0.0, 0.2)  # noise levels t_d of the discriminator
    discriminator_blocks: Positive = 6  # of the teacher, before the discriminator's head

    def __post_init__(self) -> None:
        if min(self.step_probabilities) < 0 or abs(sum(self.step_probabilities) - 1) > 1e-6:
            raise ValueError(f"step_probabilities: {list(self.step_probabilities)} must be 0 or more and add up to 1")
        for name in ("noise_range", "discriminator_noise_range"):
            levels = getattr(self, name)
            if len(levels) != 2 or not 0 <= levels[0] < levels[1] <= 1:
                raise ValueError(f"{name}: {list(levels)} must be two levels, 0 <= lowest < highest <= 1")
        if self.loss_weight == "kl" and self.noise_range[0] == 0:
            raise ValueError("noise_range: the weight kl is infinite at 0; begin above 0")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(BaseConfig):
    """A distillation run. `training.steps` counts the student's updates in rounds. Intervals of checkpoints, logs and
    previews count the updates of all models."""

    # The student samples in training as it does later. "renoise" is the paper's (Eq. 5); with "euler" a step reuses the
    # noise that the previous one estimated.
    sampling: SamplingConfig
    student: RoleConfig = field(default_factory=RoleConfig)
    fake: RoleConfig = field(default_factory=RoleConfig)
    discriminator: RoleConfig = field(default_factory=RoleConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    updates: UpdatesConfig = field(default_factory=UpdatesConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)

    def __post_init__(self) -> None:
        steps, count = self.sampling.steps, len(self.distillation.step_probabilities)
        if self.sampling.guidance != 1:
            raise ValueError(
                f"sampling.guidance: {self.sampling.guidance:g}; a student samples without guidance: set 1"
            )
        if count != steps:
            raise ValueError(
                f"distillation.step_probabilities: {count} values for the {steps} steps of sampling.steps; "
                f"give one per step"
            )
        blocks, depth = self.distillation.discriminator_blocks, self.model.backbone.depth
        if blocks > depth:
            raise ValueError(
                f"distillation.discriminator_blocks: {blocks} of a teacher with model.backbone.depth {depth}; "
                f"use at most that many"
            )
        each = self.updates.counts[0]
        if self.training.steps % each:
            raise ValueError(
                f"training.steps: {self.training.steps} is not a multiple of the student's {each} updates per round; "
                f"change one of them"
            )

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """The precision of all models together: fp32 if one of them uses it."""
        roles = (self.student, self.fake, self.teacher)
        return "fp32" if any(role.precision == "fp32" for role in roles) else "bf16"

    @property
    def paired_updates(self) -> int:
        """Updates of the warm start that read their batches from pairs."""
        return self.warm_start.updates if self.warm_start.pairs else 0

    @property
    def cycle(self) -> UpdateCycle:
        student, fake, discriminator = self.updates.counts
        if not self.distillation.adversarial_weight:
            discriminator = 0
        return UpdateCycle(student, fake, discriminator, self.warm_start.updates, self.updates.fake_warm_up)


def load_distill_config(path: str | Path, overrides: Sequence[str] = ()) -> DistillConfig:
    """Read the configuration of a distillation."""
    return parse_file(DistillConfig, path, overrides)


def load_training_config(path: Path, overrides: Sequence[str] = ()) -> BaseConfig:
    """Read the configuration of a pretraining or, if it has a student, of a distillation."""
    return (
        load_distill_config(path, overrides)
        if "student" in read_config(path)
        else load_pretrain_config(path, overrides)
    )
