"""The variants that ablations compare, as overrides of configs/distill_tiny_levels.json and configs/tiny.json."""

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
    own, depth = config.distillation, config.model.depth
    found: list[Variant] = []

    def add(group: str, name: str, stage: Stage, *overrides: str) -> None:
        found.append(Variant(group, name, stage, overrides))

    def on_top(group: str, name: str, *overrides: str, base: bool = False) -> None:
        """With `base` this is what the base configuration says."""
        add(group, name, "rounds on top", *(() if base else overrides))

    add("recipe", "by level", "warm start")
    add("recipe", "the paper's", "rounds", *PAPER)
    add("recipe", "the paper's, all noise levels, as the authors have it", "rounds", *PAPER, ALL_LEVELS)
    add("recipe", "our rounds without a warm start", "rounds")
    add("targets", "estimates at 1, 0.95, ODEs at 0.8, 0.45", "warm start")
    add("targets", "estimates at 1, 0.97, 0.92, an ODE at 0.8", "warm start", *THREE_ESTIMATES)
    add("targets", "an estimate at 1, ODEs at 0.95, 0.85, 0.7, guidance 6 from 0.85 on", "warm start", *THREE_ODES)
    for name, kind in (("ODEs alone", "ode"), ("estimates alone", "velocity")):
        add("targets", name, "warm start", f'warm_start.targets=["{kind}", "{kind}", "{kind}", "{kind}"]')
    add("targets", "endpoints of pairs, Euler's method", "warm start", *PAIRS)
    add("guidance", "from 0.7 on", "warm start")
    for name, low in (("everywhere", 0), ("from 0.9 on", 0.9)):
        add("guidance", name, "warm start", f"distillation.guidance_interval=[{low}, 1.0]")
    add("student of adapters", "whole", "warm start")
    add("student of adapters", "rank 16", "warm start", UNALIGNED, f"student.lora={ADAPTERS}")

    on_top("on top", "rounds", base=True)
    add("on top", "more of the warm start", "warm start on top")
    on_top("anchor", "with", base=True)
    on_top("anchor", "without", "distillation.regression_weight=0")
    for preset, counts in PRESETS.items():
        for alignment in (0.0, 0.03):
            name, values = ":".join(map(str, counts)) + ", IDA" * (alignment > 0), (preset, alignment)
            cadence = f"updates.preset={preset}", f"distillation.fake_alignment={alignment}"
            on_top("cadence", name, *cadence, base=values == (config.updates.preset, own.fake_alignment))
    adapters = (f"fake.lora={ADAPTERS}", "fake.optimizer.lr=8e-4")
    on_top("cadence", "1:2:1, fake model of adapters", "updates.preset=fake_twice", UNALIGNED, *adapters)
    on_top("warm-ups of fake model and discriminator", "20 updates each", base=True)
    long = ("updates.fake_warm_up=200", "updates.discriminator_warm_up=40")
    on_top("warm-ups of fake model and discriminator", "200 and 40 updates", *long)
    on_top("losses", "both, λ_adv by gradient", base=True)
    for weight in (0.1, 1.0, 3.0):
        on_top("losses", f"both, λ_adv {weight:g}", FIXED, f"distillation.adversarial_weight={weight}")
    on_top("losses", "without adversarial loss", FIXED, "distillation.adversarial_weight=0")
    on_top("losses", "without matching", FIXED, "distillation.matching_weight=0")
    on_top("noise levels", "shifted by 5", base=True)
    on_top("noise levels", "even", "distillation.noise_levels.shift=1")
    on_top("noise levels", "guidance apart", 'distillation.guidance_noise_levels={"range": [0.5, 1.0]}')
    on_top("steps drawn", "as in the warm start", base=True)
    for name, chances in (("evenly", EVENLY), ("early", "[0.4, 0.3, 0.2, 0.1]"), ("late", "[0.1, 0.2, 0.3, 0.4]")):
        on_top("steps drawn", name, f"distillation.step_probabilities={chances}")
    for blocks in sorted({max(1, round(depth * share)) for share in (1 / 4, 1 / 2, 3 / 4, 1)}):
        cut = f"distillation.discriminator_blocks={blocks}"
        on_top("discriminator", f"{blocks} of {depth} blocks", cut, base=blocks == own.discriminator_blocks)
    heads = f"distillation.discriminator_blocks={depth}", f"distillation.discriminator_heads={min(depth, 3)}"
    on_top("discriminator", f"{min(depth, 3)} heads on {depth} blocks", *heads)
    on_top("discriminator", "R1", "distillation.r1_weight=10")
    on_top("discriminator", "contrastive", "distillation.contrastive_weight=1")
    for loss in ("dmd", "eq10", "eq10_sg_teacher"):
        on_top("Eq. 10", loss, f"distillation.loss={loss}", base=loss == own.loss)
    add("MAF", "whole", "pretraining")
    for name, part in (("none", "enabled"), ("no gates", "gates"), ("no queries", "attention")):
        add("MAF", name, "pretraining", f"model.fusion.{part}=false")
    return found
