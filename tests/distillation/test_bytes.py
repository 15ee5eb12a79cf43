"""The bytes of roles with different layouts, two of them with their optimizer in the host's memory."""

from types import SimpleNamespace

import pytest

from audiox_trainer.trainer.cost.role_bytes import RoleBytes
from audiox_trainer.trainer.distillation.distill import memory_lines
from tests.helpers.scenario_results import Item, Launch

ROLES = (
    "student.zero.stage=3",
    "student.precision=bf16",
    "fake.zero.stage=2",
    "discriminator.zero.stage=1",
    "training.micro_batch=2",
    "training.steps=4",
    "updates.student=2",
    "updates.fake_warm_up=0",
)
OFFLOAD = ("fake.zero.offload_optimizer=true", "discriminator.zero.offload_optimizer=true")


@pytest.fixture(scope="module")
def two(scenes, tmp_path_factory):
    items = [Item("rounds offloaded", "rounds", (*ROLES, *OFFLOAD)), Item("rounds", "rounds", ROLES)]
    return Launch(2, scenes, tmp_path_factory.mktemp("bytes"), items, "tests.helpers.distillation_scenarios")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rounds offloaded", "rounds"])
def test_bytes_are_those_of_the_arithmetic(two, name):
    for result in two.results(name):
        assert result["bytes"] == result["planned"]


@pytest.mark.slow
def test_offload_changes_what_is_held_and_no_loss(two):
    offloaded, own = two.results("rounds offloaded")[0], two.results("rounds")[0]
    for role in ("fake", "discriminator"):
        assert offloaded["bytes"][role]["weights"] > own["bytes"][role]["weights"]
        assert offloaded["bytes"][role]["optimizer"] == own["bytes"][role]["optimizer"]
    losses = {"warm_start", "dm", "adversarial", "fake", "discriminator"}
    for row, other in zip(offloaded["rows"], own["rows"], strict=True):
        changed, usual = ({name for name in of["changed"] if "gradients" not in name} for of in (row, other))
        assert changed == usual  # and with offload the gradients stay
        seen = losses & set(other["values"])
        assert seen and losses & set(row["values"]) == seen
        for loss in seen:  # whose student, in bf16, makes more of the last bit of the other roles' weights
            assert row["values"][loss] == pytest.approx(other["values"][loss], rel=5e-3, abs=5e-4)


def test_lines_say_where_memory_is_taken():
    planned = {"fake": RoleBytes(4 << 20, 2 << 20, 0, 0), "teacher": RoleBytes(1 << 20, 0, 0, 0)}
    task = SimpleNamespace(planned_bytes=lambda: planned, engines={"fake": SimpleNamespace(offload=True)})
    assert list(memory_lines(task)) == [
        "fake: 6.0 MiB per rank, its host included (weights 4.0 MiB, gradients 2.0 MiB)",
        "teacher: 1.0 MiB per rank (weights 1.0 MiB)",
    ]
    task.engines["fake"].offload = False
    assert "host" not in "".join(memory_lines(task))
