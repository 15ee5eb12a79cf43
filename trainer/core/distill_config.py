"""The configuration of a distillation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...models.audiox import SamplingConfig
from ...models.strict import NonNegative, NonNegativeFloat, Positive, PositiveFloat
from .config import BaseConfig, OptimizerConfig, ScheduleConfig, ZeroConfig, load_config
from .config_reader import parse_file, read_config
from .schedule import Cycle


@dataclass(frozen=True)
class RoleConfig:
    """How one of student, fake model and discriminator is trained. Its schedule counts its own updates."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    precision: Literal["fp32", "bf16"] = "bf16"

    def __post_init__(self) -> None:
        if self.zero.stage == 0:
            raise ValueError("zero.stage: 0, where DeepSpeed computes in bf16 in some forwards only; set 1, 2 or 3")


@dataclass(frozen=True)
class TeacherConfig:
    """The frozen teacher, whose first blocks are the discriminator's trunk."""

    sharded: bool = False  # by ZeRO-3 over the ranks, rather than a copy on each
    precision: Literal["fp32", "bf16"] = "bf16"


def in_precision(precision: str) -> list[str]:
    """Overrides with which every role computes in it."""
    return [f"{role}.precision={precision}" for role in ("student", "fake", "discriminator", "teacher")]


PRESETS: dict[str, tuple[int, int, int]] = {"paper": (5, 1, 1), "dmd2": (1, 5, 1), "even": (1, 1, 1)}


@dataclass(frozen=True)
class UpdatesConfig:
    """Updates of each role in a round (section VI-A), and of the fake model alone before the first."""

    preset: Literal["paper", "dmd2", "even"] = "paper"  # 5:1:1, 1:5:1, 1:1:1
    student: Positive | None = None  # instead of the preset's
    fake: Positive | None = None
    discriminator: Positive | None = None
    fake_warm_up: NonNegative = 0

    @property
    def counts(self) -> tuple[int, int, int]:
        """Of student, fake model and discriminator in a round."""
        student, fake, discriminator = PRESETS[self.preset]
        return self.student or student, self.fake or fake, self.discriminator or discriminator


@dataclass(frozen=True)
class WarmStartConfig:
    """Regression of the student on the teacher's guided ODE endpoints, before anything else."""

    updates: NonNegative = 0
    pairs: str = ""  # folder made by launch/pairs.py; without one every update solves its own ODE
    ode_steps: Positive = 50  # of the ODE
    ode_shift: PositiveFloat = 1.0  # of these steps, as in `sampling`
    rollout: bool = False  # regress from where the student's own steps lead, not from the endpoint with noise added
    lr: PositiveFloat | None = None  # the student's during the warm start; by default its optimizer's


@dataclass(frozen=True)
class DistillationConfig:
    """The student's objective (section V). Its noise levels are those of `sampling`."""

    step_probabilities: tuple[float, ...] = (
        0.25,
        0.25,
        0.25,
        0.25,
    )  # of the student's steps in rounds, the noisiest first
    teacher_guidance: float = 6.0  # of the teacher, so that the student needs none
    loss: Literal["dmd", "eq10", "eq10_sg_teacher"] = "dmd"
    loss_weight: Literal["one", "kl"] = "one"  # ω_τ
    noise_range: tuple[float, ...] = (0.02, 0.98)  # lowest and highest level at which teacher and fake model are asked
    adversarial_weight: NonNegativeFloat = 1.0  # λ_adv; at 0 the discriminator has no turn either
    discriminator_noise_range: tuple[float, ...] = (0.0, 0.2)  # lowest and highest t_d
    discriminator_blocks: Positive = 6  # of the teacher, which the discriminator stands on

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
    """Everything a distillation does. `training.steps` counts the student's updates in rounds; what comes every so many
    steps (checkpoints, lines of the log, sounds) counts updates of all roles."""

    # Of the student, which samples in training as later: "renoise" is the paper's (Eq. 5); "euler" brings back what
    # noise a step found, so that all of a sample follows from its first.
    sampling: SamplingConfig
    student: RoleConfig = field(default_factory=RoleConfig)
    fake: RoleConfig = field(default_factory=RoleConfig)
    discriminator: RoleConfig = field(default_factory=RoleConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    updates: UpdatesConfig = field(default_factory=UpdatesConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)

    def __post_init__(self) -> None:
        steps, given = self.sampling.steps, len(self.distillation.step_probabilities)
        if self.sampling.guidance != 1:
            raise ValueError(f"sampling.guidance: {self.sampling.guidance:g}; a student samples without: give 1")
        if given != steps:
            raise ValueError(
                f"distillation.step_probabilities: {given} values for the {steps} steps of sampling.steps; "
                f"give one for each"
            )
        blocks, depth = self.distillation.discriminator_blocks, self.model.backbone.depth
        if blocks > depth:
            raise ValueError(
                f"distillation.discriminator_blocks: {blocks} of a teacher with model.backbone.depth {depth}; "
                f"take at most that many"
            )
        each = self.updates.counts[0]
        if self.training.steps % each:
            raise ValueError(
                f"training.steps: {self.training.steps} is not a multiple of the student's {each} updates a round; "
                f"change one of them"
            )

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """In which all roles can compute: fp32 where one of them does."""
        roles = (self.student, self.fake, self.teacher)
        return "fp32" if any(role.precision == "fp32" for role in roles) else "bf16"

    @property
    def paired_updates(self) -> int:
        """Updates of the warm start that take their batches from pairs."""
        return self.warm_start.updates if self.warm_start.pairs else 0

    @property
    def cycle(self) -> Cycle:
        student, fake, discriminator = self.updates.counts
        if not self.distillation.adversarial_weight:
            discriminator = 0
        return Cycle(student, fake, discriminator, self.warm_start.updates, self.updates.fake_warm_up)


def load_distill_config(path: str | Path, overrides: Sequence[str] = ()) -> DistillConfig:
    """Read the configuration of a distillation."""
    return parse_file(DistillConfig, path, overrides)


def load_training(path: Path, overrides: Sequence[str] = ()) -> BaseConfig:
    """Read the configuration of a pretraining or, if it has a student, of a distillation."""
    return load_distill_config(path, overrides) if "student" in read_config(path) else load_config(path, overrides)
