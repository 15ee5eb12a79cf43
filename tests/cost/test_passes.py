"""The list of passes, and what is derived from it. tests/distillation checks updates against the list."""

import pytest

from audiox_trainer.trainer.core.update_cycle import Phase
from audiox_trainer.trainer.cost.operations import distillation_flops, forward_flops, recomputed_flops
from audiox_trainer.trainer.cost.passes import (
    Gradient,
    Pass,
    count_passes,
    distillation_passes,
    ode_passes,
    step_probabilities,
)
from tests.helpers.small_config import small_distill_config


def test_a_late_step_costs_the_rollout_before_it():
    config = small_distill_config()
    for k in range(4):
        for phase, before in ((Phase.STUDENT, k), (Phase.FAKE, k + 1), (Phase.DISCRIMINATOR, k + 1)):
            assert count_passes(distillation_passes(config, phase, k))[Pass("student")] == before
    without = small_distill_config(None, "distillation.adversarial_weight=0")
    assert all(one.blocks is None for one in distillation_passes(without, Phase.STUDENT, 0))


def test_pairs_save_the_endpoints():
    euler = ("sampling.sampler=euler",)
    config, paired = small_distill_config(None, *euler), small_distill_config(None, *euler, "warm_start.pairs=made")
    own = Pass("student", Gradient.WEIGHTS)
    assert distillation_passes(config, Phase.WARM_START, 2) == (*ode_passes(config), own)
    assert distillation_passes(paired, Phase.WARM_START, 2) == (own,)


def test_a_renoising_student_asks_its_teacher_where_its_own_steps_lead():
    """One guided evaluation at the first steps, an ODE at the last."""
    config = small_distill_config()
    own, once = Pass("student", Gradient.WEIGHTS), Pass("teacher", samples=2)
    assert distillation_passes(config, Phase.WARM_START, 0) == (once, own)
    assert distillation_passes(config, Phase.WARM_START, 2) == (Pass("student", count=2), once, own)
    assert distillation_passes(config, Phase.WARM_START, 3) == (Pass("student", count=3), *ode_passes(config), own)


def test_guidance_within_an_interval_saves_the_other_branch_elsewhere():
    """An ODE of three equal steps from 1, and from the student's last level of 0.25."""
    interval = ("distillation.guidance_interval=[0.5, 0.8]", "sampling.timesteps=[1, 0.7, 0.5, 0.25]")
    config = small_distill_config(None, *interval)
    assert ode_passes(config) == (Pass("teacher"), Pass("teacher", samples=2), Pass("teacher"))
    assert ode_passes(config, 0.25) == (Pass("teacher", count=3),)
    teacher = [distillation_passes(config, Phase.WARM_START, k)[bool(k)].samples for k in range(4)]
    assert teacher == [1, 2, 2, 1]


def test_an_anchor_and_a_split_ask_the_teacher_more_often():
    """After the student's own pass: matching without guidance, its guidance, and the regression's target."""
    split = 'distillation.guidance_noise_levels={"shift": 3}'
    config = small_distill_config(None, "distillation.adversarial_weight=0", "distillation.regression_weight=1", split)
    once, twice = Pass("teacher"), Pass("teacher", samples=2)
    assert distillation_passes(config, Phase.STUDENT, 0)[1:] == (once, Pass("fake"), twice, twice)
    assert distillation_passes(config, Phase.STUDENT, 3)[2:] == (once, Pass("fake"), twice, *ode_passes(config))
    alone = small_distill_config(None, "distillation.matching_weight=0")
    assert "fake" not in {one.role for one in distillation_passes(alone, Phase.STUDENT, 0)}


def test_a_discriminator_reads_data_more_often_for_its_penalties():
    config = small_distill_config(None, "distillation.r1_weight=1", "distillation.contrastive_weight=1")
    trunk, head = distillation_passes(config, Phase.DISCRIMINATOR, 0)[1:]
    assert (trunk.count, head.samples) == (4, 4)


def test_a_warm_start_takes_all_steps_alike():
    config = small_distill_config(None, "distillation.step_probabilities=[0.7, 0.1, 0.1, 0.1]")
    assert step_probabilities(config, Phase.WARM_START) == [0.25] * 4
    assert list(step_probabilities(config, Phase.STUDENT)) == [0.7, 0.1, 0.1, 0.1]


@pytest.mark.parametrize(("loss", "through"), [("dmd", 0), ("eq10_sg_teacher", 1), ("eq10", 3)])
def test_operations_of_a_students_update(loss, through):
    """By hand: a rollout, its own pass, teacher (two branches) and fake model, what a loss differentiates through, the
    trunk and back."""
    config, k, tokens = small_distill_config(None, f"distillation.loss={loss}"), 2, 16
    parts, trunk = (
        forward_flops(config.model, tokens, blocks) for blocks in (None, config.distillation.discriminator_blocks)
    )
    conditioner = parts["temporal"] + parts["fusion"]
    expected = (k + 3 + 3) * parts["total"] + through * (parts["total"] - conditioner)
    expected += 2 * trunk["total"] - conditioner
    assert distillation_flops(config, Phase.STUDENT, k, tokens) == expected


def test_checkpointing_computes_the_blocks_of_passes_with_a_gradient_again():
    config, blocks = small_distill_config(), ("latent stream", "condition stream", "attention", "modulation")
    whole, trunk = (
        sum(forward_flops(config.model, 16, n)[name] for name in blocks)
        for n in (None, config.distillation.discriminator_blocks)
    )
    expected = {Phase.STUDENT: whole + trunk, Phase.DISCRIMINATOR: 0, Phase.DISCRIMINATOR_WARM_UP: 0}
    for phase in Phase:
        found = recomputed_flops(config.model, distillation_passes(config, phase, 1), 16)
        assert found == expected.get(phase, whole)
