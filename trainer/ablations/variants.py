"""The variants that ablations compare, as overrides of configs/distill_tiny_levels.json and configs/tiny.json."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..core.distill_config import PRESETS, DistillConfig

# What a run is: a teacher; a student from the teacher's weights, by a warm start or by rounds; more of either on top of
# the base student.
Stage = Literal["pretraining", "warm start", "rounds", "rounds on top", "warm start on top"]


@dataclass(frozen=True)
class Variant:
    """One way to train, as overrides of the base configuration of its stage. Without any it is the base itself."""

    group: str
    name: str
    stage: Stage
    overrides: tuple[str, ...] = ()

    @property
    def on_top(self) -> bool:
        return self.stage.endswith("on top")


BASE = Variant("base", "student", "warm start")  # what the others are on top of
EVENLY = "[0.25, 0.25, 0.25, 0.25]"
THREE_ESTIMATES = (
    "sampling.timesteps=[1.0, 0.97, 0.92, 0.8]",
    'warm_start.targets=["velocity", "velocity", "velocity", "ode"]',
    "warm_start.step_probabilities=[0.16, 0.17, 0.17, 0.5]",
)
THREE_ODES = (
    "sampling.timesteps=[1.0, 0.95, 0.85, 0.7]",
    'warm_start.targets=["velocity", "ode", "ode", "ode"]',
    "warm_start.step_probabilities=[0.1, 0.3, 0.3, 0.3]",
    "warm_start.ode_steps=6",
    "warm_start.ode_shift=2",
    "distillation.teacher_guidance=6",
    "distillation.guidance_interval=[0.85, 1.0]",
)
PAIRS = (
    "sampling.timesteps=[1.0, 0.97, 0.92, 0.8]",
    "sampling.sampler=euler",
    "warm_start.targets=[]",
    "warm_start.rollout=true",
    "warm_start.ode_steps=12",
    "warm_start.ode_shift=12",
    f"warm_start.step_probabilities={EVENLY}",
    "distillation.teacher_guidance=3",
    "distillation.guidance_interval=[0, 1]",
)
PAPER = (  # sections V and VI-A
    "sampling.timesteps=[1.0, 0.75, 0.5, 0.25]",
    "warm_start.targets=[]",
    "updates.preset=paper",
    "updates.fake_warm_up=0",
    "updates.discriminator_warm_up=0",
    f"distillation.step_probabilities={EVENLY}",
    "distillation.teacher_guidance=6",
    "distillation.guidance_interval=[0, 1]",
    "distillation.noise_levels={}",
    "distillation.fake_alignment=0",
    "distillation.regression_weight=0",
    "distillation.adversarial_gradient_ratio=null",
    *(
        f"{role}.{value}"
        for role in ("student", "fake", "discriminator")
        for value in ("optimizer.lr=1e-4", "optimizer.betas=[0.9, 0.999]", "schedule={}")
    ),
)
LAYERS = '["backbone.blocks.*.qkv", "backbone.blocks.*.out", "backbone.blocks.*.mlp.*", "backbone.blocks.*.modulation"]'
ADAPTERS = f'{{"rank": 16, "alpha": 16, "targets": {LAYERS}}}'
UNALIGNED = "distillation.fake_alignment=0"  # which goes with whole weights alone
ALL_LEVELS = "distillation.noise_levels.range=[0, 1]"
FIXED = "distillation.adversarial_gradient_ratio=null"  # λ_adv is `adversarial_weight`


def list_variants(config: DistillConfig) -> list[Variant]:
    """All of them, for a base configuration of four steps."""
    return [*_from_the_teacher(), *_cadences(config), *_objectives(), *_discriminators(config), *_teachers()]


def _from_the_teacher() -> Iterator[Variant]:
    """Recipes, and what the warm start regresses on."""

    def warm_start(group: str, name: str, *overrides: str) -> Variant:
        return Variant(group, name, "warm start", overrides)

    yield warm_start("recipe", "by level")
    yield Variant("recipe", "the paper's", "rounds", PAPER)
    yield Variant("recipe", "the paper's, all noise levels, as the authors have it", "rounds", (*PAPER, ALL_LEVELS))
    yield Variant("recipe", "our rounds without a warm start", "rounds")
    yield warm_start("targets", "estimates at 1, 0.95, ODEs at 0.8, 0.45")
    yield warm_start("targets", "estimates at 1, 0.97, 0.92, an ODE at 0.8", *THREE_ESTIMATES)
    yield warm_start("targets", "an estimate at 1, ODEs at 0.95, 0.85, 0.7, guidance 6 from 0.85 on", *THREE_ODES)
    yield warm_start("targets", "ODEs alone", 'warm_start.targets=["ode", "ode", "ode", "ode"]')
    estimates = 'warm_start.targets=["velocity", "velocity", "velocity", "velocity"]'
    yield warm_start("targets", "estimates alone", estimates)
    yield warm_start("targets", "endpoints of pairs, Euler's method", *PAIRS)
    yield warm_start("guidance", "from 0.7 on")
    yield warm_start("guidance", "everywhere", "distillation.guidance_interval=[0, 1.0]")
    yield warm_start("guidance", "from 0.9 on", "distillation.guidance_interval=[0.9, 1.0]")
    yield warm_start("student of adapters", "whole")
    yield warm_start("student of adapters", "rank 16", UNALIGNED, f"student.lora={ADAPTERS}")


def _on_top(group: str, name: str, *overrides: str, base: bool = False) -> Variant:
    """Rounds on top of the base student. With `base` the overrides are what the base configuration says."""
    return Variant(group, name, "rounds on top", () if base else overrides)


def _cadences(config: DistillConfig) -> Iterator[Variant]:
    """Whether there are rounds, and how often each role has its turn."""
    yield _on_top("on top", "rounds", base=True)
    yield Variant("on top", "more of the warm start", "warm start on top")
    for preset, counts in PRESETS.items():
        for alignment in (0.0, 0.03):
            base = (preset, alignment) == (config.updates.preset, config.distillation.fake_alignment)
            name = ":".join(map(str, counts)) + (", IDA" if alignment else "")
            overrides = f"updates.preset={preset}", f"distillation.fake_alignment={alignment}"
            yield _on_top("cadence", name, *overrides, base=base)
    adapters = f"fake.lora={ADAPTERS}", "fake.optimizer.lr=8e-4"
    yield _on_top("cadence", "1:2:1, fake model of adapters", "updates.preset=fake_twice", UNALIGNED, *adapters)
    warm_ups = "warm-ups of fake model and discriminator"
    yield _on_top(warm_ups, "20 updates each", base=True)
    longer = "updates.fake_warm_up=200", "updates.discriminator_warm_up=40"
    yield _on_top(warm_ups, "200 and 40 updates", *longer)


def _objectives() -> Iterator[Variant]:
    """The student's losses in rounds."""
    yield _on_top("anchor", "with", base=True)
    yield _on_top("anchor", "without", "distillation.regression_weight=0")
    yield _on_top("losses", "both, λ_adv by gradient", base=True)
    for weight in (0.1, 1.0, 3.0):
        yield _on_top("losses", f"both, λ_adv {weight:g}", FIXED, f"distillation.adversarial_weight={weight}")
    yield _on_top("losses", "without adversarial loss", FIXED, "distillation.adversarial_weight=0")
    yield _on_top("losses", "without matching", FIXED, "distillation.matching_weight=0")
    yield _on_top("noise levels", "shifted by 5", base=True)
    yield _on_top("noise levels", "even", "distillation.noise_levels.shift=1")
    yield _on_top("noise levels", "guidance apart", 'distillation.guidance_noise_levels={"range": [0.5, 1.0]}')
    yield _on_top("steps drawn", "as in the warm start", base=True)
    for name, chances in (("evenly", EVENLY), ("early", "[0.4, 0.3, 0.2, 0.1]"), ("late", "[0.1, 0.2, 0.3, 0.4]")):
        yield _on_top("steps drawn", name, f"distillation.step_probabilities={chances}")
    yield _on_top("Eq. 10", "dmd", base=True)
    yield _on_top("Eq. 10", "eq10", "distillation.loss=eq10")
    yield _on_top("Eq. 10", "eq10_sg_teacher", "distillation.loss=eq10_sg_teacher")


def _discriminators(config: DistillConfig) -> Iterator[Variant]:
    """What the discriminator sees."""
    depth = config.model.depth
    for blocks in sorted({max(1, round(depth * share)) for share in (1 / 4, 1 / 2, 3 / 4, 1)}):
        base = blocks == config.distillation.discriminator_blocks
        cut = f"distillation.discriminator_blocks={blocks}"
        yield _on_top("discriminator", f"{blocks} of {depth} blocks", cut, base=base)
    heads = min(depth, 3)
    several = f"distillation.discriminator_blocks={depth}", f"distillation.discriminator_heads={heads}"
    yield _on_top("discriminator", f"{heads} heads on {depth} blocks", *several)
    yield _on_top("discriminator", "R1", "distillation.r1_weight=10")
    yield _on_top("discriminator", "contrastive", "distillation.contrastive_weight=1")


def _teachers() -> Iterator[Variant]:
    """Pretrained with and without parts of the fusion (Table V)."""
    yield Variant("MAF", "whole", "pretraining")
    for name, part in (("none", "enabled"), ("no gates", "gates"), ("no queries", "attention")):
        yield Variant("MAF", name, "pretraining", (f"model.fusion.{part}=false",))
