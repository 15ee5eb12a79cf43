"""One launch of two ranks for all the files of this folder."""

import pytest

from tests.helpers.scenario_results import SHARES, Item, Launch

ROLES = ("student", "fake", "discriminator")


def stage(number: int, *more: str) -> tuple[str, ...]:
    return (*(f"{role}.zero.stage={number}" for role in ROLES), *more)


ENDS = (1, 4, 6, 9)  # updates before which a run breaks off: in the warm-ups, and at several places of a round
BF16 = 7  # and one more, in bfloat16
RESUMED = stage(
    2, "training.steps=4", "updates.student=2", "updates.fake_warm_up=1", "checkpoint.every=1", "checkpoint.keep_last=0"
)
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
    "distillation.noise_range=[0.3, 0.7]",
    "distillation.discriminator_noise_range=[0.1, 0.4]",
    "sampling.timesteps=[1.0, 0.97, 0.92, 0.8]",
)
EULER = ("sampling.sampler=euler", "warm_start.updates=3")
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
    Item("rounds partitioned", "rounds", stage(3, SHARES)),
    Item("rounds eq10", "rounds", stage(3, "distillation.loss=eq10", "teacher.sharded=true")),
    Item("rounds stopped", "rounds", stage(2, "distillation.loss=eq10_sg_teacher", "distillation.loss_weight=kl")),
    *[Item(f"rounds bf16 {n}", "rounds", stage(n, *LOW)) for n in (1, 2)],
    Item("rounds euler", "rounds", stage(2, *EULER, "warm_start.lr=3e-3"), arguments=PAIRED),
    Item("rounds rolled", "rounds", stage(1, *EULER, "warm_start.rollout=true"), arguments=PAIRED),
    Item("rounds bf16 3", "rounds", stage(3, *LOW, "teacher.sharded=true")),
    Item("rounds own", "rounds", OWN),
    Item("rounds bf16 own", "rounds", (*OWN, "fake.precision=bf16", "teacher.precision=bf16")),
    Item("rounds elsewhere", "rounds", stage(1, *ELSEWHERE)),
    Item("flat", "collapsed", stage(2, *SHORT), arguments={"size": 0.1}),
    Item("alike", "collapsed", stage(2, *SHORT), arguments={"size": 1.0}),
    Item("through", "whole", RESUMED),
    Item("midway", "midway", RESUMED, arguments={"updates": MIDWAY}),
    Item("resumed midway", "whole", RESUMED, folder="midway", arguments={"resume": True}),
    *[item for end in ENDS for item in interrupted(end, f"{end}", RESUMED)],
    Item("asked", "asked", (*RESUMED, "checkpoint.every=100"), arguments={"asks": [[3, [1]], [6, [0, 1]]]}),
    Item("through bf16", "whole", (*RESUMED, *LOW)),
    *interrupted(BF16, f"{BF16} bf16", (*RESUMED, *LOW)),
]
COMPILED = Item("compiled", "compiled", stage(2, *LOW[:2], "training.compile=true", "warm_start.updates=2"))


@pytest.fixture(scope="session")
def distilled(scenes, tmp_path_factory):
    return Launch(2, scenes, tmp_path_factory.mktemp("distillation"), TWO_RANKS, "tests.helpers.distillation_scenarios")
