"""A training that diverges keeps its healthy checkpoints, goes back to the last one, once, and skips batches."""

import json
import math

import pytest

from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.core.cli import ExitCode
from audiox_trainer.trainer.core.integrity import read_manifest
from tests.helpers.scenario_results import KINDS, Item, Launch, differing, stage

pytestmark = pytest.mark.slow

EVERY = 'checkpoint={"every": 2, "keep_last": 3}'
RATES = {
    "bad rate": (EVERY,),
    "bad rate, each step": ('checkpoint={"every": 1, "keep_last": 1}',),
    "bad rate, bf16": (EVERY, "training.precision=bf16"),
    "bad rate, asynchronous": ('checkpoint={"every": 2, "keep_last": 3, "async_save": true}',),
}


def bad_batches(name: str, poison: list[int], stop: int = 0) -> list[Item]:
    """A run with a NaN sample in some batches; with `stop` it breaks off before that batch, and resumes."""
    settings, arguments = stage(2, EVERY, "training.max_skipped_steps=2"), {"poison": poison}
    items = [Item(name, "whole", settings, arguments=arguments | {"stop": stop})]
    if stop:
        items.append(Item(f"{name} resumed", "whole", settings, folder=name, arguments=arguments | {"resume": True}))
    return items


ITEMS = [
    Item("calm", "whole", stage(2, EVERY)),
    Item("calm bf16", "whole", stage(2, EVERY, "training.precision=bf16")),
    *[
        Item(name, "bad_rate", stage(2, "training.max_skipped_steps=5", *settings), arguments={"lr": 1e39})
        for name, settings in RATES.items()
    ],
    *bad_batches("bad batches", [5, 6]),
    *bad_batches("broken before", [5, 6], stop=7),
    *bad_batches("broken after", [5, 6], stop=12),
    *bad_batches("bad batches twice", [5, 6, 9, 10]),
]


@pytest.fixture(scope="module")
def runs(scenes, tmp_path_factory):
    return Launch(2, scenes, tmp_path_factory.mktemp("divergence"), ITEMS)


def metrics(launch, name):
    return [json.loads(line) for line in (launch.folders[name] / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", RATES)
def test_a_rate_that_is_too_high_costs_no_healthy_checkpoint(runs, name):
    for result in runs.results(name):
        begun, diverged, back = result["ends"]
        assert begun == {"stopped": 5} and back == {}
        assert "The run has gone back by itself before and diverges again" in diverged["error"]
        assert diverged["error"].endswith("is that of step 4: continue there with --resume --from 4")
        assert diverged["code"] == ExitCode.DIVERGED
        assert "step_00000004" in diverged["left"]
    calm = "calm bf16" if "bf16" in name else "calm"
    assert differing(runs.checkpoint(calm, 12), runs.checkpoint(name, 12)) == [], "as if it had never been raised"


@pytest.mark.parametrize("name", [item.name for item in ITEMS if item.scenario == "whole" and not item.folder])
def test_no_checkpoint_is_saved_that_is_not_finite(runs, name):
    folders = load.list_checkpoints(runs.folders[name])
    assert folders
    for folder in folders:
        for kind in ("weights", "exp_avg", "exp_avg_sq", "ema"):
            assert all(t.isfinite().all() for t in load.full_tensors(folder, "model", kind).values())


def test_bad_batches_are_skipped(runs):
    assert runs.results("bad batches") == [{}, {}]
    manifest = read_manifest(runs.checkpoint("bad batches", 12))
    assert (manifest["skipped_batches"], manifest["rollbacks"], manifest["healthy"]) == (3, 1, True)
    rows = metrics(runs, "bad batches")
    (back,) = [row for row in rows if "rolled_back_from" in row]
    assert (back["step"], back["rolled_back_from"], back["skipped_batches"]) == (4, 7, 3)
    assert [row["step"] for row in rows if row is not back] == list(range(1, 13)), "each step is once in the metrics"
    aside = runs.folders["bad batches"] / "rolled_back"
    assert sorted(file.name for file in aside.iterdir()) == ["metrics_5_to_6.jsonl", "step_00000006"]
    assert not load.find_fault(aside / "step_00000006"), "nothing is deleted"
    assert read_manifest(aside / "step_00000006")["healthy"] is False


@pytest.mark.parametrize("name", ["broken before", "broken after"])
def test_a_run_that_went_back_resumes_bitwise(runs, name):
    """It breaks off just before it goes back, or after it has saved again."""
    assert runs.results(name) == [{}, {}]
    assert differing(runs.checkpoint("bad batches", 12), runs.checkpoint(name, 12)) == []
    assert read_manifest(runs.checkpoint(name, 12))["skipped_batches"] == 3


def test_it_goes_back_by_itself_once(runs):
    for result in runs.results("bad batches twice"):
        assert "2 steps in a row, to step 7, had a loss or gradient that is not finite" in result["error"]
        assert "the loss is not finite for sample-10-1" in result["error"], "of the samples of both ranks"
        assert result["error"].endswith("is that of step 4: continue there with --resume --from 4"), "no step tried 6"
        assert result["code"] == ExitCode.DIVERGED


def test_manifests_remember_losses_and_skipped_steps(runs):
    manifest = read_manifest(runs.folders["bad batches"] / "rolled_back" / "step_00000006")
    assert manifest["skipped_steps"] == 1
    manifest, rows = read_manifest(runs.checkpoint("calm", 12)), metrics(runs, "calm")
    assert manifest["skipped_steps"] == 0 and manifest["healthy"]
    assert math.isclose(manifest["losses"]["model"], sum(row["loss"] for row in rows[10:]) / 2, rel_tol=1e-5)


ROLES = ("student", "fake", "discriminator")
# Two rounds of four updates after two updates of warm-ups: ten, saved after 1, 2, 6 and 10.
ROUNDS = (
    *(f"{role}.zero.stage=2" for role in ROLES),
    *("training.steps=4", "updates.student=2", "updates.fake_warm_up=1", "training.max_skipped_steps=1"),
    *("checkpoint.every=1", "checkpoint.keep_last=1"),
)
POISON = {"poison": [7]}
DISTILLATIONS = [
    Item("bad batch", "whole", ROUNDS, arguments=POISON),
    Item("broken", "whole", ROUNDS, arguments=POISON | {"stop": 11}),
    Item("resumed", "whole", ROUNDS, folder="broken", arguments=POISON | {"resume": True}),
]


@pytest.fixture(scope="module")
def distillations(scenes, tmp_path_factory):
    base = tmp_path_factory.mktemp("distillations")
    return Launch(2, scenes, base, DISTILLATIONS, "tests.helpers.distillation_scenarios")


def test_a_distillation_goes_back_too(distillations):
    manifest = read_manifest(distillations.checkpoint("bad batch", 10))
    assert (manifest["skipped_batches"], manifest["rollbacks"], manifest["healthy"]) == (2, 1, True)
    assert manifest["losses"].keys() == {"student", "fake", "discriminator"}
    for role in ROLES:
        kinds = KINDS if role == "student" else [kind for kind in KINDS if kind != "ema"]
        assert differing(*(distillations.checkpoint(n, 10) for n in ("bad batch", "resumed")), role, kinds) == []
