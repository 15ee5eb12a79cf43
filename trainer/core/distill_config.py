"""The configuration of a distillation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...models.audiox import SamplingConfig
from ...models.config import ReleasedModelConfig
from ...models.interval import check_interval
from ...models.lora import LoraConfig
from ...models.sampler import Guidance
from ...models.strict import NonNegative, NonNegativeFloat, Positive, PositiveFloat, Share
from .config import BaseConfig, OptimizerConfig, ScheduleConfig, ZeroConfig, load_pretrain_config
from .config_reader import parse_file, read_config
from .noise_levels import NoiseLevels
from .update_cycle import UpdateCycle


@dataclass(frozen=True)
class RoleConfig:
    """Training of the student, the fake model or the discriminator. The schedule counts the model's own updates."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    precision: Literal["fp32", "bf16"] = "bf16"
    lora: LoraConfig | None = None  # trains adapters of the teacher's weights, which the role shares with it

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


# What the student regresses on at one of its steps: the teacher's guided velocity at the student's own z, the end of
# the teacher's ODE from there, or the endpoint of the ODE from the first noise.
Target = Literal["velocity", "ode", "endpoint"]

PRESETS: dict[str, tuple[int, int, int]] = {
    "paper": (5, 1, 1),
    "dmd2": (1, 5, 1),
    "even": (1, 1, 1),
    "fake_twice": (1, 2, 1),
}


@dataclass(frozen=True)
class UpdatesConfig:
    """Updates of each model per round (section VI-A), and of fake model and discriminator before the first round."""

    preset: Literal["paper", "dmd2", "even", "fake_twice"] = "paper"  # 5:1:1, 1:5:1, 1:1:1, 1:2:1
    student: Positive | None = None  # by default the preset's
    fake: Positive | None = None
    discriminator: Positive | None = None
    fake_warm_up: NonNegative = 0
    discriminator_warm_up: NonNegative = 0
    compile_from: NonNegative = 0  # kinds of updates of which the run has fewer are not compiled, if any are

    @property
    def counts(self) -> tuple[int, int, int]:
        """Updates per round of student, fake model and discriminator."""
        student, fake, discriminator = PRESETS[self.preset]
        return self.student or student, self.fake or fake, self.discriminator or discriminator


@dataclass(frozen=True)
class WarmStartConfig:
    """Regression of the student on its teacher, before the first round. Its schedule counts its own updates, the
    student's own those in rounds."""

    updates: NonNegative = 0
    targets: tuple[Target, ...] = ()  # of each of the student's steps, the noisiest first; by default by its sampler
    pairs: str = ""  # folder made by launch/pairs.py with endpoints; without one an update solves its own ODE
    ode_steps: Positive = 50  # of an ODE
    ode_shift: PositiveFloat = 1.0  # of these steps, as in `sampling`
    rollout: bool = False  # regress on endpoints from the student's own z too, not from the endpoint with noise added
    step_probabilities: tuple[float, ...] = ()  # of training each of the student's steps; by default all alike
    lr: PositiveFloat | None = None  # the student's during the warm start; by default its optimizer's
    schedule: ScheduleConfig | None = None  # by default the student's
    reset_moments: bool = False  # the student's optimizer begins the rounds without moments

    def __post_init__(self) -> None:
        if self.step_probabilities:
            _check_probabilities("step_probabilities", self.step_probabilities)


@dataclass(frozen=True)
class DistillationConfig:
    """The student's objective in rounds (section V): distribution matching, the adversarial loss, and the warm start's
    regression, each with its weight."""

    step_probabilities: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)  # of training each step, the noisiest first
    fake_step_probabilities: tuple[float, ...] = ()  # of the step that the fake model sees; by default the student's
    discriminator_step_probabilities: tuple[float, ...] = ()  # the same for the discriminator
    teacher_guidance: float = 6.0  # the student learns guided sampling, and needs none itself
    guidance_interval: tuple[float, ...] = (0.0, 1.0)  # lowest and highest noise level at which the teacher is guided
    matching_weight: NonNegativeFloat = 1.0  # λ_dm; at 0 the fake model is not trained either
    loss: Literal["dmd", "eq10", "eq10_sg_teacher"] = "dmd"
    loss_weight: Literal["one", "kl"] = "one"  # ω_τ
    noise_levels: NoiseLevels = field(default_factory=NoiseLevels)  # τ of teacher and fake model
    # τ of the guidance's part of the gradient alone; noise_levels are then of the teacher without guidance.
    guidance_noise_levels: NoiseLevels | None = None
    # Share of the way to the student that the fake model's weights go after each of the student's updates in rounds.
    fake_alignment: Share = 0.0
    regression_weight: NonNegativeFloat = 0.0  # λ_reg, of the regression on `warm_start.targets` at the same input
    adversarial_weight: NonNegativeFloat = 1.0  # λ_adv; at 0 the discriminator is not trained either
    # Norm of the adversarial gradient at ẑ_0 relative to that of distribution matching: λ_adv is set by it per sample.
    adversarial_gradient_ratio: PositiveFloat | None = None
    discriminator_noise_levels: NoiseLevels = field(default_factory=lambda: NoiseLevels((0.0, 0.2)))  # t_d
    discriminator_blocks: Positive = 6  # of the teacher, before the discriminator's head
    discriminator_heads: Positive = 1  # on features at so many depths, the last after these blocks
    r1_weight: NonNegativeFloat = 0.0  # of the scores' change when noise is added to data (approximate R1)
    r1_sigma: PositiveFloat = 0.01  # of that noise
    contrastive_weight: NonNegativeFloat = 0.0  # of data under the conditions of another sample, as negatives

    @property
    def guidance(self) -> Guidance:
        return Guidance(self.teacher_guidance, self.guidance_interval)

    def __post_init__(self) -> None:
        check_interval("guidance_interval", self.guidance_interval)
        for name in ("step_probabilities", "fake_step_probabilities", "discriminator_step_probabilities"):
            if name == "step_probabilities" or getattr(self, name):
                _check_probabilities(name, getattr(self, name))
        if self.adversarial_gradient_ratio is not None and (self.adversarial_weight != 1 or not self.matching_weight):
            raise ValueError(
                f"adversarial_gradient_ratio: {self.adversarial_gradient_ratio:g} decides the weight itself, "
                f"relative to distribution matching; leave adversarial_weight at 1 and matching_weight above 0"
            )
        if self.guidance_noise_levels and (self.loss != "dmd" or self.teacher_guidance == 1):
            raise ValueError("guidance_noise_levels: splits the loss dmd with a teacher_guidance other than 1; drop it")
        if self.discriminator_heads > self.discriminator_blocks:
            raise ValueError(
                f"discriminator_heads: {self.discriminator_heads} on {self.discriminator_blocks} discriminator_blocks; "
                f"there is at most one per block"
            )
        if not (self.matching_weight or self.adversarial_weight or self.regression_weight):
            raise ValueError("matching_weight: 0, like adversarial_weight and regression_weight; one must be above 0")
        levels = [self.noise_levels, *([self.guidance_noise_levels] if self.guidance_noise_levels else [])]
        if self.loss_weight == "kl" and min(one.range[0] for one in levels) == 0:
            raise ValueError("noise_levels.range: the weight kl is infinite at 0; begin above 0")


def _check_probabilities(name: str, values: Sequence[float]) -> None:
    if min(values, default=-1) < 0 or abs(sum(values) - 1) > 1e-6:
        raise ValueError(f"{name}: {list(values)} must be 0 or more and add up to 1")


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
        super().__post_init__()
        self._check_sampling()
        self._check_warm_start()
        self._check_discriminator()
        self._check_adapters()
        own = self.distillation
        if own.fake_alignment and (self.fake.zero, self.fake.precision) != (self.student.zero, self.student.precision):
            raise ValueError(
                "distillation.fake_alignment: moves each rank's part of the fake model's weights to the same part of "
                "the student's; give fake the zero and precision of student"
            )
        each = self.updates.counts[0]
        if self.training.steps % each:
            raise ValueError(
                f"training.steps: {self.training.steps} is not a multiple of the student's {each} updates per round; "
                f"change one of them"
            )

    def _check_sampling(self) -> None:
        """A student samples without guidance, and what stands for each of its steps has one value for each."""
        steps, own = self.sampling.steps, self.distillation
        if self.sampling.guidance != 1:
            raise ValueError(
                f"sampling.guidance: {self.sampling.guidance:g}; a student samples without guidance: set 1"
            )
        per_step: dict[str, Sequence[object]] = {
            "distillation.step_probabilities": own.step_probabilities,
            "distillation.fake_step_probabilities": own.fake_step_probabilities,
            "distillation.discriminator_step_probabilities": own.discriminator_step_probabilities,
            "warm_start.targets": self.targets,
            "warm_start.step_probabilities": self.warm_start.step_probabilities,
        }
        for name, values in per_step.items():
            if values and len(values) != steps:
                raise ValueError(
                    f"{name}: {len(values)} values for the {steps} steps of sampling.steps; give one per step"
                )

    def _check_warm_start(self) -> None:
        if self.sampling.sampler == "renoise" and "endpoint" in self.targets[1:]:
            raise ValueError(
                f"warm_start.targets: {list(self.targets)}; with sampling.sampler renoise every step but the first has "
                f"fresh noise, which the endpoint of the first noise does not follow from: take velocity or ode there"
            )
        if self.paired_updates and "endpoint" not in self.targets:
            raise ValueError(
                f"warm_start.pairs: {self.warm_start.pairs}, but the student regresses on no endpoint "
                f"(warm_start.targets {list(self.targets)}); leave the pairs out, or set another target"
            )
        if self.warm_start.pairs and isinstance(self.model, ReleasedModelConfig):
            raise ValueError(
                "warm_start.pairs: the released network generates more latents than a clip of a shard has; leave them "
                "out, and every update of the warm start solves its own ODE"
            )

    def _check_discriminator(self) -> None:
        own = self.distillation
        blocks, depth = own.discriminator_blocks, self.model.depth
        section = "released" if isinstance(self.model, ReleasedModelConfig) else "backbone"
        if blocks > depth:
            raise ValueError(
                f"distillation.discriminator_blocks: {blocks} of a teacher with model.{section}.depth {depth}; "
                f"use at most that many"
            )
        if own.discriminator_heads > 1 and isinstance(self.model, ReleasedModelConfig):
            raise ValueError(
                "distillation.discriminator_heads: the released discriminator has one per block; leave it out"
            )
        if own.contrastive_weight and self.training.micro_batch == 1:
            raise ValueError(
                "distillation.contrastive_weight: takes the conditions of another sample of the micro-batch; set "
                "training.micro_batch to 2 or more"
            )

    def _check_adapters(self) -> None:
        """Of roles that share the teacher's weights."""
        if self.discriminator.lora:
            raise ValueError("discriminator.lora: its head is trained as a whole; leave it out")
        for name, role in self.adapted.items():
            if role.zero.stage == 3 or self.teacher.sharded:
                where = "teacher.sharded: true" if self.teacher.sharded else f"{name}.zero.stage: 3"
                raise ValueError(
                    f"{where} with {name}.lora, which shares the teacher's whole weights; set stage 1 or 2, and "
                    f"teacher.sharded to false"
                )
            if role.precision != self.teacher.precision:
                raise ValueError(
                    f"{name}.precision: {role.precision} with {name}.lora, whose weights are the teacher's; set "
                    f"{self.teacher.precision}, which is teacher.precision"
                )
            if role.lora and role.lora.int8:
                raise ValueError(f"{name}.lora.int8: true, but its weights are the teacher's; set it to false")
            if role.lora and role.lora.train:
                raise ValueError(f"{name}.lora.train: {role.lora.train[0]!r} is the teacher's too; leave it out")
            if self.training.fp8:
                raise ValueError(f"training.fp8: true with {name}.lora, whose layers torchao does not know; set false")
        if self.student.lora and self.init.weights:
            raise ValueError(
                f"init.weights: {self.init.weights}, but with student.lora the student's weights are the teacher's; "
                f"leave one of them out"
            )
        if self.adapted and self.distillation.fake_alignment:
            raise ValueError(
                "distillation.fake_alignment: moves whole weights, and adapters have none in common; set it to 0"
            )

    @property
    def adapted(self) -> dict[str, RoleConfig]:
        """The roles that are adapters of the teacher."""
        return {name: role for name, role in (("student", self.student), ("fake", self.fake)) if role.lora}

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """The precision of all models together: fp32 if one of them uses it."""
        roles = (self.student, self.fake, self.teacher)
        return "fp32" if any(role.precision == "fp32" for role in roles) else "bf16"

    @property
    def targets(self) -> tuple[Target, ...]:
        """The warm start's target at each of the student's steps. By default endpoints for Euler's method, where the
        first noise determines the sample. With fresh noise between the steps an endpoint's posterior mean would be
        learned: there it is the velocity at all steps but the last, and the ODE at the last."""
        steps = self.sampling.steps
        endpoint: Target = "endpoint"
        velocity: Target = "velocity"
        ode: Target = "ode"
        usual = [velocity] * (steps - 1) + [ode] if self.sampling.sampler == "renoise" else [endpoint] * steps
        return self.warm_start.targets or tuple(usual)

    @property
    def paired_updates(self) -> int:
        """Updates of the warm start that read their batches from pairs."""
        return self.warm_start.updates if self.warm_start.pairs else 0

    @property
    def cycle(self) -> UpdateCycle:
        student, fake, discriminator = self.updates.counts
        fake_warm_up, discriminator_warm_up = self.updates.fake_warm_up, self.updates.discriminator_warm_up
        if not self.distillation.matching_weight:
            fake = fake_warm_up = 0
        if not self.distillation.adversarial_weight:
            discriminator = discriminator_warm_up = 0
        warm_start = self.warm_start.updates
        return UpdateCycle(student, fake, discriminator, warm_start, fake_warm_up, discriminator_warm_up)


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
