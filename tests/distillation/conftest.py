"""One launch of two ranks for all the files of this folder."""

import pytest

from tests.training.launches import Item, Launch

ROLES = ("student", "fake", "discriminator")


def stage(number: int, *more: str) -> tuple[str, ...]:
    return (*(f"{role}.zero.stage={number}" for role in ROLES), *more)


ENDS = (1, 4, 6, 9)  # updates before which a run breaks off: in the warm-ups, and at several places of a round
RESUMED = stage(2, "training.steps=4", "updates.student=2", "updates.fake_warm_up=1", "checkpoint.every=1")
TWO_RANKS = [
    *[Item(f"rounds {n}", "rounds", stage(n)) for n in (1, 2, 3)],
    Item("rounds accumulated", "rounds", stage(2, "training.micro_batch=2")),
    Item("rounds sharded", "rounds", stage(2, "teacher.sharded=true")),
    Item("rounds eq10", "rounds", stage(2, "distillation.loss=eq10")),
    Item("through", "whole", RESUMED),
    *[
        item
        for end in ENDS
        for item in (
            Item(f"broken {end}", "whole", RESUMED, arguments={"stop": end}),
            Item(f"resumed {end}", "whole", RESUMED, folder=f"broken {end}", arguments={"resume": True}),
        )
    ],
]


@pytest.fixture(scope="session")
def two(scenes, tmp_path_factory):
    return Launch(2, scenes, tmp_path_factory.mktemp("distillation"), TWO_RANKS, "tests.distillation_ranks")
