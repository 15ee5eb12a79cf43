"""The list of passes, and what is derived from it. tests/training/distillation checks updates against the list."""

import pytest

from audiox_trainer.trainer.core.update_cycle import Phase
from audiox_trainer.trainer.cost.operations import distillation_flops, forward_flops, recomputed_flops
from audiox_trainer.trainer.cost.passes import (
    Gradient,
    Pass,
    count_passes,
    distillation_passes,
    endpoint_pass,
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
    config, paired = small_distill_config(), small_distill_config(None, "warm_start.pairs=made")
    assert distillation_passes(config, Phase.WARM_START, 0) == (
        endpoint_pass(config),
        Pass("student", Gradient.WEIGHTS),
    )
    assert distillation_passes(paired, Phase.WARM_START, 0) == (Pass("student", Gradient.WEIGHTS),)


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
    expected = {Phase.STUDENT: whole + trunk, Phase.DISCRIMINATOR: 0}
    for phase in Phase:
        found = recomputed_flops(config.model, distillation_passes(config, phase, 1), 16)
        assert found == expected.get(phase, whole)
