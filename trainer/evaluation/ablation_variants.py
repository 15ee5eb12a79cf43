"""The variants that ablations compare, as overrides of configs/distill_tiny_levels.json and configs/tiny.json."""

from dataclasses import dataclass
from typing import Literal

from ..core.distill_config import PRESETS

# What a run's budget goes into: a teacher's steps, a student's warm start, or rounds. "On top" begins with the student
# of the first variant, the other two of a student with the teacher's weights.
Kind = Literal["pretraining", "warm start", "rounds", "rounds on top", "warm start on top"]


@dataclass(frozen=True)
class Variant:
    """One way to train, as overrides of the base configuration of its kind."""

    group: str
    name: str
    kind: Kind
    overrides: tuple[str, ...] = ()

    @property
    def on_top(self) -> bool:
        return self.kind.endswith("on top")


EVENLY = "[0.25, 0.25, 0.25, 0.25]"
DENSE_LEVELS = "sampling.timesteps=[1.0, 0.97, 0.92, 0.8]"
THREE_ESTIMATES = (
    DENSE_LEVELS,
    'warm_start.targets=["velocity", "velocity", "velocity", "ode"]',
    "warm_start.step_probabilities=[0.16, 0.17, 0.17, 0.5]",
)
PAIRS = (
    DENSE_LEVELS,
    "sampling.sampler=euler",
    "warm_start.targets=[]",
    "warm_start.rollout=true",
    "warm_start.ode_steps=12",
    "warm_start.ode_shift=12",
    f"warm_start.step_probabilities={EVENLY}",
    "distillation.teacher_guidance=3",
    "distillation.guidance_interval=[0, 1]",
)
PAPER = (  # section VI-A
    "sampling.timesteps=[1.0, 0.75, 0.5, 0.25]",
    "warm_start.targets=[]",
    "updates.preset=paper",
    "updates.fake_warm_up=0",
    "updates.discriminator_warm_up=0",
    "fake.optimizer.lr=1e-4",
    "discriminator.optimizer.lr=1e-4",
    f"distillation.step_probabilities={EVENLY}",
    "distillation.teacher_guidance=6",
    "distillation.guidance_interval=[0, 1]",
    "distillation.noise_levels={}",
    "distillation.fake_alignment=0",
    "distillation.regression_weight=0",
    "distillation.adversarial_gradient_ratio=null",
)
DEEP = ("distillation.discriminator_blocks=3", "distillation.discriminator_heads=3")
LAYERS = '["backbone.blocks.*.qkv", "backbone.blocks.*.out", "backbone.blocks.*.mlp.*", "backbone.blocks.*.modulation"]'
ADAPTERS = f'{{"rank": 16, "alpha": 16, "targets": {LAYERS}}}'
UNALIGNED = "distillation.fake_alignment=0"
FIXED = "distillation.adversarial_gradient_ratio=null"  # λ_adv is `adversarial_weight`

Choice = tuple[Kind, tuple[str, ...]]


def list_variants() -> list[Variant]:
    """All of them; the first is the base. Some train the same in the end."""

    def warm_start(*overrides: str) -> Choice:
        return "warm start", overrides

    def rounds(*overrides: str) -> Choice:
        return "rounds", overrides

    def on_top(*overrides: str) -> Choice:
        return "rounds on top", overrides

    def teacher(*parts: str) -> Choice:
        return "pretraining", tuple(f"model.fusion.{part}=false" for part in parts)

    def targets(*kinds: str) -> str:
        return "warm_start.targets=[" + ", ".join(f'"{kind}"' for kind in kinds) + "]"

    def cadence(preset: str, alignment: float) -> Choice:
        return on_top(f"updates.preset={preset}", f"distillation.fake_alignment={alignment}")

    groups: dict[str, dict[str, Choice]] = {
        "phase": {
            "warm start": warm_start(),
            "then rounds": on_top(),
            "then more of the warm start": ("warm start on top", ()),
            "rounds alone": rounds(),
        },
        "recipe": {
            "by level": warm_start(),
            "the paper's": rounds(*PAPER),
            "the authors'": rounds(*PAPER, *DEEP, "distillation.noise_levels.range=[0, 1]"),
        },
        "targets": {
            "two estimates, two ODEs": warm_start(),
            "three estimates, one ODE": warm_start(*THREE_ESTIMATES),
            "an ODE at each level": warm_start(targets(*["ode"] * 4)),
            "estimates alone": warm_start(targets(*["velocity"] * 4)),
            "endpoints of pairs": warm_start(*PAIRS),
        },
        "guidance": {
            "from 0.7 on": warm_start(),
            "everywhere": warm_start("distillation.guidance_interval=[0, 1]"),
            "from 0.9 on": warm_start("distillation.guidance_interval=[0.9, 1.0]"),
        },
        "anchor": {"with": on_top(), "without": on_top("distillation.regression_weight=0")},
        "cadence": {
            ":".join(map(str, counts)) + words: cadence(preset, alignment)
            for preset, counts in PRESETS.items()
            for words, alignment in (("", 0.0), (", IDA", 0.03))
        },
        "losses": {
            "both, λ_adv by gradient": on_top(),
            **{
                f"both, λ_adv {weight}": on_top(FIXED, f"distillation.adversarial_weight={weight}")
                for weight in (0.1, 1.0, 3.0)
            },
            "matching alone": on_top(FIXED, "distillation.adversarial_weight=0"),
            "adversarial alone": on_top(FIXED, "distillation.matching_weight=0"),
        },
        "noise levels": {
            "shifted": on_top(),
            "even": on_top("distillation.noise_levels.shift=1"),
            "guidance apart": on_top('distillation.guidance_noise_levels={"range": [0.5, 1.0]}'),
        },
        "steps drawn": {
            "as in the warm start": on_top(),
            "evenly": on_top(f"distillation.step_probabilities={EVENLY}"),
            "early": on_top("distillation.step_probabilities=[0.4, 0.3, 0.2, 0.1]"),
            "late": on_top("distillation.step_probabilities=[0.1, 0.2, 0.3, 0.4]"),
        },
        "discriminator": {
            "1 of 3 blocks": on_top(),
            "2 of 3 blocks": on_top("distillation.discriminator_blocks=2"),
            "3 of 3 blocks": on_top("distillation.discriminator_blocks=3"),
            "3 heads on 3 blocks": on_top(*DEEP),
            "R1": on_top("distillation.r1_weight=10"),
            "contrastive": on_top("distillation.contrastive_weight=1"),
        },
        "Eq. 10": {loss: on_top(f"distillation.loss={loss}") for loss in ("dmd", "eq10", "eq10_sg_teacher")},
        "trunk": {
            "fake model whole": on_top(UNALIGNED),
            "fake model of adapters": on_top(UNALIGNED, f"fake.lora={ADAPTERS}", "fake.optimizer.lr=8e-4"),
            "student whole": warm_start(),
            "student of adapters": warm_start(UNALIGNED, f"student.lora={ADAPTERS}"),
        },
        "MAF": {
            "whole": teacher(),
            "none": teacher("enabled"),
            "no gates": teacher("gates"),
            "no queries": teacher("attention"),
        },
    }
    return [Variant(group, name, *choice) for group, choices in groups.items() for name, choice in choices.items()]
