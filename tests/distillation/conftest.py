"""One launch of two ranks for all the files of this folder."""

import pytest

from tests.helpers.scenario_results import SHARES, Item, Launch

ROLES = ("student", "fake", "discriminator")


def stage(number: int, *more: str) -> tuple[str, ...]:
    return (*(f"{role}.zero.stage={number}" for role in ROLES), *more)


ENDS = (1, 4, 7, 9)  # updates before which a run breaks off: in the warm-ups, and at several places of a round
BF16 = 8  # and one more, in bfloat16
RESUMED = stage(
    2,
    "training.steps=4",
    "updates.student=2",
    "updates.fake_warm_up=1",
    "updates.discriminator_warm_up=1",
    "warm_start.reset_moments=true",
    "distillation.fake_alignment=0.1",
    "distillation.regression_weight=0.5",
    'distillation.guidance_noise_levels={"shift": 3.0}',
    "checkpoint.every=1",
    "checkpoint.keep_last=0",
)
UNALIGNED = ("distillation.fake_alignment=0",)
MIDWAY = 4  # updates after which a checkpoint lies within a round
SHORT = ("training.steps=1", "updates.student=1", "updates.fake_warm_up=0")  # one update of each kind
LOW = tuple(f"{role}.precision=bf16" for role in (*ROLES, "teacher"))
OWN = (  # of each role, and of none of the others
    "student.zero.stage=2",
    "fake.zero.stage=3",
    "discriminator.zero.stage=1",
    'student.optimizer={"lr": 2e-3, "betas": [0.5, 0.9], "max_grad_norm": 0.5}',
    'fake.optimizer={"lr": 4e-3, "betas": [0.0, 0.99], "max_grad_norm": 0, "weight_decay": 0.1}',
    'discriminator.optimizer={"lr": 1e-2, "betas": [0.8, 0.95], "max_grad_norm": 0.05, "eps": 1e-6}',
    'student.schedule={"warmup": 0.3, "cooldown": 0.5}',
    'fake.schedule={"warmup": 0.5, "cooldown": 1.0}',
    'discriminator.schedule={"warmup": 0.8, "inv_gamma": 2.0}',
)
ELSEWHERE = (  # what a student is asked about
    "distillation.step_probabilities=[0.05, 0.15, 0.3, 0.5]",
    'distillation.noise_levels={"range": [0.1, 0.95], "distribution": "logit_normal", "mean": 0.5, "shift": 3.0}',
    'distillation.discriminator_noise_levels={"range": [0.1, 0.4], "distribution": "log_normal", "mean": -1.5}',
    "distillation.fake_step_probabilities=[0.7, 0.1, 0.1, 0.1]",
    "distillation.discriminator_step_probabilities=[0.1, 0.1, 0.1, 0.7]",
    "sampling.timesteps=[1.0, 0.97, 0.92, 0.8]",
)
EULER = ("sampling.sampler=euler", "warm_start.updates=3")
PHASES = (  # each with a schedule of its own
    "updates.discriminator_warm_up=2",
    "warm_start.updates=3",
    "warm_start.step_probabilities=[0.1, 0.2, 0.3, 0.4]",
    'warm_start.schedule={"warmup": 0.1, "cooldown": 1.0}',
    "warm_start.reset_moments=true",
    'student.schedule={"warmup": 0.5, "cooldown": 0.5}',
)
LEVELS = (  # a renoising student's targets, on steps of the ODE that are not equal
    "warm_start.updates=6",
    "warm_start.ode_shift=4.0",
    "warm_start.step_probabilities=[0.2, 0.2, 0.2, 0.4]",
    "training.steps=5",
)
MIXED = (*EULER[:1], 'warm_start.targets=["endpoint", "velocity", "ode", "ode"]', *LEVELS)
STAGE = (  # everything that rounds may have, on top of another student
    "training.steps=2",
    'updates={"student": 2, "fake": 1, "discriminator": 1, "fake_warm_up": 1, "discriminator_warm_up": 1}',
    "distillation.regression_weight=0.7",
    "distillation.fake_alignment=0.2",
    'distillation.guidance_noise_levels={"range": [0.3, 1.0], "shift": 3.0}',
    "distillation.adversarial_weight=1",
    "distillation.adversarial_gradient_ratio=0.2",
    "distillation.discriminator_blocks=2",
    "distillation.discriminator_heads=2",
    "distillation.r1_weight=10",
    "distillation.contrastive_weight=0.5",
    "discriminator.optimizer.eps=1e-4",
)
LORA = '{"rank": 3, "alpha": 6, "targets": ["backbone.blocks.*.qkv", "conditioner.text"]}'
ADAPTERS = ("student.lora=" + LORA, "fake.lora=" + LORA)  # of the teacher, whose weights both share
PAIRED = {"paired": [1, 2]}  # the others of the warm start are solved on the fly


def interrupted(end: int, name: str, overrides: tuple[str, ...]) -> list[Item]:
    """A run that stops before an update, and resumes."""
    return [
        Item(f"broken {name}", "whole", overrides, arguments={"stop": end}),
        Item(f"resumed {name}", "whole", overrides, folder=f"broken {name}", arguments={"resume": True}),
    ]


TWO_RANKS = [
    *[Item(f"rounds {n}", "rounds", stage(n)) for n in (1, 2, 3)],
    Item("rounds accumulated", "rounds", stage(2, "training.micro_batch=2")),
    Item("rounds sharded", "rounds", stage(2, "teacher.sharded=true")),
    Item("rounds eq10", "rounds", stage(2, "distillation.loss=eq10")),
    Item("rounds stopped", "rounds", stage(2, "distillation.loss=eq10_sg_teacher", "distillation.loss_weight=kl")),
    *[Item(f"rounds bf16 {n}", "rounds", stage(n, *LOW)) for n in (1, 2)],
    Item("rounds euler", "rounds", stage(2, *EULER, "warm_start.lr=3e-3"), arguments=PAIRED),
    Item("rounds rolled", "rounds", stage(1, *EULER, "warm_start.rollout=true"), arguments=PAIRED),
    Item("rounds own", "rounds", OWN),
    Item("rounds bf16 own", "rounds", (*OWN, "fake.precision=bf16", "teacher.precision=bf16")),
    Item("rounds elsewhere", "rounds", stage(1, *ELSEWHERE)),
    Item("rounds levels", "rounds", stage(1, *LEVELS)),
    Item("rounds stage", "rounds", stage(2, *STAGE, "training.micro_batch=2")),
    Item("rounds stage 3", "rounds", stage(3, *STAGE, "teacher.sharded=true")),
    Item("rounds phases", "rounds", stage(1, *PHASES)),
    Item("rounds adapters", "rounds", stage(1, "warm_start.updates=2", *ADAPTERS)),
    Item("rounds bf16 adapters", "rounds", stage(2, *LOW, ADAPTERS[1])),
    Item("flat", "collapsed", stage(2, *SHORT), arguments={"size": 0.1}),
    Item("alike", "collapsed", stage(2, *SHORT), arguments={"size": 1.0}),
    Item("through", "whole", RESUMED),
    Item("scored", "scored", (*RESUMED, "checkpoint.every=2", "checkpoint.keep_last=0")),
    Item("midway", "midway", RESUMED, arguments={"updates": MIDWAY}),
    Item("resumed midway", "whole", RESUMED, folder="midway", arguments={"resume": True}),
    *[item for end in ENDS for item in interrupted(end, f"{end}", RESUMED)],
    Item("asked", "asked", (*RESUMED, "checkpoint.every=100"), arguments={"asks": [[3, [1]], [8, [0, 1]]]}),
    Item("through bf16", "whole", (*RESUMED, *LOW)),
    *interrupted(BF16, f"{BF16} bf16", (*RESUMED, *LOW)),
    Item("through adapters", "whole", (*RESUMED, *UNALIGNED, *ADAPTERS)),
    *interrupted(ENDS[2], f"{ENDS[2]} adapters", (*RESUMED, *UNALIGNED, *ADAPTERS)),
]
TWO_RANKS_LONG = [  # at stage 3, which takes three times as long
    Item("rounds partitioned", "rounds", stage(3, SHARES)),
    Item("rounds eq10 3", "rounds", stage(3, "distillation.loss=eq10", "teacher.sharded=true")),
    Item("rounds bf16 3", "rounds", stage(3, *LOW, "teacher.sharded=true")),
    Item("rounds levels 3", "rounds", stage(3, *LEVELS, "teacher.sharded=true")),
    Item("rounds phases 3", "rounds", stage(3, *PHASES)),
]
COMPILED = Item("compiled", "compiled", stage(2, *LOW[:2], "training.compile=true", "warm_start.updates=2"))


@pytest.fixture(scope="session")
def distilled(scenes, shared):
    folder = shared / "distillation"
    folder.mkdir(exist_ok=True)
    return Launch(2, scenes, folder, TWO_RANKS, "tests.helpers.distillation_scenarios")


@pytest.fixture(scope="session")
def distilled_long(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distillation")
    return Launch(2, scenes, folder, TWO_RANKS_LONG, "tests.helpers.distillation_scenarios")
