"""Ranks that are compared while they train: nothing is disturbed, and a wrong or slow one is named."""

import json

import pytest

from audiox_trainer.trainer.core.cli import ExitCode
from tests.helpers.check_scenarios import SLEEP
from tests.helpers.scenario_results import KINDS, Item, Launch, differing, stage, state

pytestmark = pytest.mark.slow
OFTEN = 'checks={"weights_every": 1, "repeat_every": 1, "stragglers_every": 1}'
NEVER = 'checks={"weights_every": 0, "repeat_every": 0, "stragglers_every": 0}'
SHORT = ("training.steps=4", 'checkpoint={"every": 2, "keep_last": 0}')
ROLES = ("student", "fake", "discriminator")
ROUND = (  # every kind of update, in six
    "training.steps=2",
    "updates.student=2",
    "updates.fake_warm_up=1",
    'checkpoint={"every": 2, "keep_last": 0}',
)
# The stages in this order: once a process has used stage 3, its linear layers round otherwise under autocast.
SETTINGS = {
    "0 bf16": stage(0, *SHORT, "training.precision=bf16"),
    "1 bf16": stage(1, *SHORT, "training.precision=bf16", "training.micro_batch=2"),
    "2": stage(2, *SHORT, "training.activation_checkpointing=true"),
    "distillation 2": (*(f"{role}.zero.stage=2" for role in ROLES), *ROUND),
    "3 bf16": stage(3, *SHORT, "training.precision=bf16", "training.micro_batch=2"),
}
LONG = {
    "2 compiled": stage(2, *SHORT, "training.precision=bf16", "training.compile=true"),
    "3": stage(3, *SHORT),
    "3 compiled": stage(3, *SHORT, "training.precision=bf16", "training.compile=true"),
    "distillation 3": (*(f"{role}.zero.stage=3" for role in ROLES), "teacher.sharded=true", *ROUND),
}
WEIGHTS = {  # settings, step of the flip, the model, checkpoints that are left
    "in a copy at stage 0": ("0 bf16", 2, "model", [2]),
    "in a copy at stage 1": ("1 bf16", 3, "model", [2]),
    "in the frozen teacher": ("distillation 2", 3, "teacher", [2]),
}
REPEATS = {"distillation": "distillation 2", "3": "3 bf16"}


def fault(name, at=0, model="model", ranks=(1,)):
    return {"fault": name, "at": at, "model": model, "ranks": ranks}


RARELY = 'checks={"weights_every": 100, "repeat_every": 0, "stragglers_every": 2}'


def pairs(settings):
    for name, overrides in settings.items():
        yield Item(f"unchecked {name}", "run", (*overrides, NEVER))
        yield Item(f"checked {name}", "run", (*overrides, OFTEN))
        for flip, (where, at, model, _) in WEIGHTS.items():
            if where == name:
                yield Item(flip, "run", (*overrides, OFTEN), arguments=fault("flipped_weight", at, model))
        for repeat, where in REPEATS.items():
            if where == name:
                model = "student" if repeat == "distillation" else "model"
                yield Item(f"repeat {repeat}", "run", (*overrides, OFTEN), arguments=fault("flipped_result", 2, model))


ITEMS = [
    Item("just before a save", "run", (*SETTINGS["0 bf16"], RARELY), arguments=fault("flipped_weight", 3)),
    Item("another order", "run", (*SETTINGS["2"], OFTEN), arguments=fault("another_order", ranks=(0, 1))),
    Item("slow", "run", (*SETTINGS["2"], "training.steps=6", RARELY), arguments=fault("slow_forward")),
    *pairs(SETTINGS),
]


@pytest.fixture(scope="module")
def runs(scenes, tmp_path_factory):
    return Launch(2, scenes, tmp_path_factory.mktemp("checks"), ITEMS, "tests.helpers.check_scenarios")


@pytest.mark.parametrize("name", SETTINGS)
def test_checks_disturb_nothing(runs, name):
    assert differences(runs, name) == []


@pytest.mark.long
def test_checks_disturb_nothing_in_more_settings(scenes, tmp_path):
    runs = Launch(2, scenes, tmp_path, list(pairs(LONG)), "tests.helpers.check_scenarios")
    for name in LONG:
        assert differences(runs, name) == []


def differences(runs, name):
    """What differs between the last checkpoints of the runs with and without checks."""
    for kind in ("checked", "unchecked"):
        for result in runs.results(f"{kind} {name}"):
            assert "error" not in result, result
    distills = name.startswith("distillation")
    first, second = (runs.checkpoint(f"{kind} {name}", 6 if distills else 4) for kind in ("unchecked", "checked"))
    roles = ROLES if distills else ("model",)
    found = []
    for role in roles:
        kinds = [kind for kind in KINDS if kind != "ema" or role in ("model", "student")]
        assert state(first, role, kinds)
        found += differing(first, second, role, kinds)
    return found


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_flipped_bit_ends_the_run_before_it_saves(runs, name):
    _, at, model, left = WEIGHTS[name]
    words = "weights" if model == "model" else f"{model}'s weights"
    for result in runs.results(name):
        assert f"silent corruption by step {at}: the {words} of rank 0 (" in result["error"], result
        assert "rank 1 (" in result["error"] and "no majority says which are right" in result["error"]
        assert result["code"] == ExitCode.FAULTY == 81
        assert result["left"] == [f"step_{step:08d}" for step in left]


def test_a_flip_between_two_checks_is_found_by_that_before_a_save(runs):
    for result in runs.results("just before a save"):
        assert "silent corruption by step 3: the weights of rank 0 (" in result["error"]
        assert result["left"] == ["step_00000002"]


@pytest.mark.parametrize("name", REPEATS)
def test_a_result_that_differs_the_second_time_names_its_rank(runs, name):
    for result in runs.results(f"repeat {name}"):
        assert (
            "silent corruption in step 2: the losses of the same micro-batch differed the second time on "
            in (result["error"])
        )
        assert "rank 1 (" in result["error"] and "rank 0 (" not in result["error"]
        assert result["code"] == ExitCode.FAULTY


def test_kernels_that_add_in_another_order_end_no_run(runs):
    for result in runs.results("another order"):
        assert "error" not in result
        (sentence,) = [text for text in result["said"] if "the kernels rather than a device" in text]
        assert sentence.startswith("step 0: the gradient of the same micro-batch differed the second time on 2 of 2 ")


def test_a_slow_rank_is_named(runs):
    for result in runs.results("slow"):
        assert "error" not in result
        slow = [text for text in result["said"] if "is slow" in text]
        assert slow and all("rank 1 (" in text and "rank 0 (" not in text for text in slow), result["said"]
        assert slow[0].startswith("step 4: ") and "is slow: forward takes " in slow[0]
        assert any(text.startswith("rank 1 (") and text.endswith("mostly in forward") for text in result["said"])
        assert any(text.startswith("per step: data ") for text in result["said"])
    lines = (runs.folders["slow"] / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "seconds/forward" in row]
    assert [row["step"] for row in rows] == [5, 6], "a comparison is in the next line, that at the end in its own"
    for row in rows:
        assert row["seconds/forward_slowest"] > SLEEP and row["seconds/forward_slowest_rank"] == 1
        assert row["seconds/communication_slowest_rank"] == 0, "the other one waits"
        assert row["seconds/slow_ranks"] == 1
