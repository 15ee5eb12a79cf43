"""Copies on the nodes: a run that lost processes or a node goes on from them, bitwise as if nothing had been."""

import json

import pytest

from audiox_trainer.trainer.core.config import CheckpointConfig
from tests.helpers.scenario_results import Item, Launch, differing, stage

pytestmark = pytest.mark.slow

SAVED, COPIED = 4, 6  # the steps of the last checkpoint and of the last copies when the run breaks off
CASES = {  # arguments, settings, and the step that it resumes from
    "nothing": ({}, stage(2), COPIED),
    "nothing at stage 0": ({}, stage(0), COPIED),
    "in the background": ({}, stage(2, "checkpoint.async_save=true"), None),
    "lost": ({"damage": "lost"}, stage(2), COPIED),
    "lost at stage 0": ({"damage": "lost"}, stage(0), COPIED),
    "both lost": ({"damage": "both lost"}, stage(2), SAVED),
    "flipped": ({"damage": "flipped"}, stage(2), COPIED),
    "both flipped": ({"damage": "both flipped"}, stage(2), SAVED),
    "full": ({"damage": "full"}, stage(2), SAVED),
    "went back": ({"back": SAVED}, stage(2), SAVED),
}
LONG = {
    "nothing at stage 3": ({}, stage(3), COPIED),
    "another stage": ({"stage": 3}, stage(2), SAVED),
}


@pytest.fixture(scope="module")
def launch(scenes, tmp_path_factory):
    return launched(scenes, tmp_path_factory.mktemp("copies"), CASES, (0, 2))


def launched(scenes, base, cases, stages):
    Launch(2, scenes, base, [Item(f"through {number}", "whole", stage(number)) for number in stages])
    (base / "nodes").mkdir()
    for name in cases:
        (base / "nodes" / name).mkdir()
    copied = [
        Item(
            name,
            "copied",
            (*settings, "checkpoint.local_every=2", f"checkpoint.local_folder={base / 'nodes' / name}"),
            arguments=arguments,
        )
        for name, (arguments, settings, _) in cases.items()
    ]
    return Launch(2, scenes, base, copied, "tests.helpers.copy_scenarios")


def beginning(launch, name):
    """What a run said of where it goes on."""
    return launch.results(name)[0]["said"].partition("resumed from")[2].splitlines()[0]


def differences(launch, name, number):
    """What differs at the end from the run at this stage that was not broken."""
    through = launch.base / f"through {number}" / "checkpoints" / "step_00000012"
    return differing(through, launch.checkpoint(name, 12))


@pytest.mark.parametrize("name", CASES)
def test_it_goes_on_from_the_newest_that_is_whole(launch, name):
    _, settings, step = CASES[name]
    assert step is None or f"at step {step}" in beginning(launch, name)
    assert differences(launch, name, json.loads(settings[0].partition("=")[2])) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_it_goes_on_at_stage_3(scenes, tmp_path):
    launch = launched(scenes, tmp_path, LONG, [3])
    for name, (_, _, step) in LONG.items():
        assert f"at step {step}" in beginning(launch, name)
        assert launch.results(name)[0]["after"] == []
    assert differences(launch, "nothing at stage 3", 3) == []  # of other shards the end differs by rounding


def test_every_node_has_its_own_files_and_those_of_the_node_before(launch):
    for result in launch.results("nothing"):
        assert result["left"] == [
            f"node-{node}/checkpoints/step_{step:08d}/model/rank_{rank:05d}.safetensors"
            for node in (0, 1)
            for step in (2, 6)
            for rank in (0, 1)
        ]


@pytest.mark.parametrize("name", CASES)
def test_at_the_end_of_a_run_none_is_left(launch, name):
    assert launch.results(name)[0]["after"] == []


def test_where_no_copy_can_be_written_training_goes_on(launch):
    assert "no copy on the nodes: could not save" in launch.results("full")[0]["said"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local_every": 10}, "local_folder: it is missing"),
        ({"local_every": 1000, "local_folder": "x"}, "local_every: 1000 must be below every, 1000; or 0"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        CheckpointConfig(**settings)
