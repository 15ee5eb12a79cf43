"""Spikes are attributed to samples and streams, and a manifest says whether a checkpoint is healthy."""

import math

import pytest
import torch
import torch.distributed as dist

from audiox_trainer.trainer.data.batches import Batch, Conditions
from audiox_trainer.trainer.training.health import DivergedError, Health, StepResult


@pytest.fixture(autouse=True)
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def batch(step):
    nothing = torch.zeros(3, 1)
    ids, streams = tuple(f"{step}-{i}" for i in range(3)), ("data/a", "data/b", "data/a")
    conditions = Conditions(nothing, nothing, nothing, nothing)
    return Batch(nothing, conditions, nothing, torch.arange(3), ("T2A",) * 3, ids, streams=streams)


def take(health, step, *losses, kind="model", role="model"):
    applied = all(map(math.isfinite, losses))
    return health.step(kind, StepResult(role, applied, {}, 1, torch.tensor(losses)), step, batch(step))


def test_a_skipped_step_names_the_samples_and_their_streams():
    said = take(Health(9, {}), 4, 1.0, math.nan, math.inf)
    assert said.endswith("(1 in a row); the loss is not finite for 4-1 of data/b, 4-2 of data/a")


def test_where_no_sample_is_finite_the_weights_are_named():
    health = Health(2, {})
    take(health, 0, *[math.nan] * 3, role="fake")
    with pytest.raises(
        DivergedError, match=r"2 steps in a row, to step 1, .*all 3 samples is not finite, so it is the w"
    ):
        take(health, 1, *[math.nan] * 3, role="fake")


def test_where_only_the_gradient_overflowed_the_largest_loss_is_named():
    result = StepResult("model", False, {}, 1, torch.tensor([1.0, 2.0, 7.5]))
    said = Health(9, {}).step("model", result, 0, batch(0))
    assert said.endswith("every sample's loss is finite; the largest, 7.5, is that of 0-2 of data/a")


def test_a_finite_spike_is_named_in_the_next_line_of_the_log():
    health = Health(9, {})
    for step in range(40):
        assert take(health, step, 1.0, 90.0 if step == 17 else 1.0, 1.0) == ""
    assert list(health.spikes()) == ["a spike: the loss of sample 17-1 of data/b was 90 in step 17, 52 times the mean"]
    take(health, 40, 1.0, 1.0, 1.0)
    assert list(health.spikes()) == [], "once"
    take(health, 41, -1.0, 500.0, 1.0, kind="discriminator")
    assert list(health.spikes()) == [], "an adversarial loss has no usual size"


def test_a_checkpoint_between_a_spike_and_the_next_line_of_the_log():
    """The line may be of steps of another kind, whose mean says nothing of the spike."""
    health = Health(9, {})
    for step in range(40):
        take(health, step, 1.0, 90.0 if step == 17 else 1.0, 1.0, kind="fake")
    assert health.summarize_and_reset()["healthy"]
    take(health, 40, 1.0, 1.0, 1.0, kind="student")
    assert list(health.spikes()) == ["a spike: the loss of sample 17-1 of data/b was 90 in step 17, 52 times the mean"]
    take(health, 41, 1.0, 1.0, 900.0, kind="fake")
    assert not health.summarize_and_reset()["healthy"]
    take(health, 42, 1.0, 1.0, 1.0, kind="student")
    said = "a spike: the loss of sample 41-2 of data/a was 900 in step 41, 517 times the mean"
    assert list(health.spikes()) == [said]
    take(health, 43, 1.0, 1.0, 900.0, kind="warm_start")
    take(health, 44, 1.0, math.nan, 1.0, kind="fake")
    assert not health.summarize_and_reset()["healthy"]
    take(health, 45, 1.0, 1.0, 1.0, kind="student")
    assert list(health.spikes()) == [], "nothing says what is usual of a kind that no healthy checkpoint knows"


def test_what_a_manifest_says():
    health = Health(9, {})
    for step in range(4):
        take(health, step, 1.0, 2.0, math.nan if step == 1 else 3.0)
    assert health.confirmed
    assert health.summarize_and_reset() == {"healthy": True, "losses": {"model": 2.0}, "skipped_steps": 1}
    assert not health.confirmed, "until a step has tried these weights"
    take(health, 4, 1.0, 2.0, math.nan)
    assert health.summarize_and_reset() == {"healthy": False, "losses": {}, "skipped_steps": 1}
    take(health, 5, 30.0, 20.0, 25.0)
    assert health.summarize_and_reset() == {"healthy": False, "losses": {"model": 25.0}, "skipped_steps": 0}, (
        "more than tenfold"
    )
    take(health, 6, 3.0, 2.0, 1.0)
    assert health.summarize_and_reset()["healthy"]
    health.step("model", StepResult("model", True, {}, 1, torch.tensor([1.0, math.inf, 1.0])), 7, batch(7))
    assert health.summarize_and_reset() == {"healthy": False, "losses": {}, "skipped_steps": 0}, (
        "although its gradient was finite"
    )
