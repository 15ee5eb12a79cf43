"""One launch of two ranks for all the files of this folder."""

import pytest

from tests.training.launches import SHARES, Item, Launch

ROLES = ("student", "fake", "discriminator")


def stage(number: int, *more: str) -> tuple[str, ...]:
    return (*(f"{role}.zero.stage={number}" for role in ROLES), *more)


ENDS = (1, 4, 6, 9)  # updates before which a run breaks off: in the warm-ups, and at several places of a round
BF16 = 7  # and one more, in bfloat16
RESUMED = stage(
    2, "training.steps=4", "updates.student=2", "updates.fake_warm_up=1", "checkpoint.every=1", "checkpoint.keep=0"
)
LOW = tuple(f"{role}.precision=bf16" for role in (*ROLES, "teacher"))


def interrupted(end: int, name: str, overrides: tuple[str, ...]) -> list[Item]:
    """A run that breaks off before an update, and goes on."""
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
    Item("rounds stopped", "rounds", stage(2, "distillation.loss=eq10_sg_teacher", "distillation.weight=kl")),
    *[Item(f"rounds bf16 {n}", "rounds", stage(n, *LOW)) for n in (1, 2)],
    Item("rounds euler", "rounds", stage(2, "sampling.kind=euler", "warm_start.lr=3e-3")),
    Item("rounds rolled", "rounds", stage(1, "sampling.kind=euler", "warm_start.rollout=true")),
    Item("rounds bf16 3", "rounds", stage(3, *LOW, "teacher.sharded=true")),
    Item("through", "whole", RESUMED),
    *[item for end in ENDS for item in interrupted(end, f"{end}", RESUMED)],
    Item("asked", "asked", (*RESUMED, "checkpoint.every=100"), arguments={"asks": [[3, [1]], [6, [0, 1]]]}),
    Item("through bf16", "whole", (*RESUMED, *LOW)),
    *interrupted(BF16, f"{BF16} bf16", (*RESUMED, *LOW)),
]


@pytest.fixture(scope="session")
def two(scenes, tmp_path_factory):
    return Launch(2, scenes, tmp_path_factory.mktemp("distillation"), TWO_RANKS, "tests.distillation_ranks")
