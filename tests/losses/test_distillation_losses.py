"""The distillation losses on Gaussians, whose velocities are known in closed form."""

import math

import pytest
import torch

from audiox_trainer.trainer.core.update_cycle import Phase, UpdateCycle
from audiox_trainer.trainer.distillation.objectives import steered_weight
from audiox_trainer.trainer.losses.dmd import dmd_loss, eq10_loss, eq10_sg_teacher_loss, matching_weight
from audiox_trainer.trainer.losses.flow_matching import interpolate
from audiox_trainer.trainer.losses.gan import (
    adversarial_loss,
    approximate_r1_loss,
    contrastive_loss,
    discriminator_loss,
)

B, L, C = 4096, 1, 1


def velocity(z, t, mean, deviation):
    """E[z_1 - z_0 | z_t] for data N(mean, deviation²) and noise N(0, 1)."""
    t = t[:, None, None]
    variance = t**2 + (1 - t) ** 2 * deviation**2
    residual = z - (1 - t) * mean
    return t / variance * residual - (mean + (1 - t) * deviation**2 / variance * residual)


def gradient(loss, student, teacher, tau):
    """The mean gradient at the samples of a student N(mean, deviation²) with an exact fake model."""
    generator = torch.Generator().manual_seed(0)
    z0 = (student[0] + student[1] * torch.randn(B, L, C, generator=generator)).requires_grad_()
    tau = torch.full((B,), tau)
    z_tau = interpolate(z0, torch.randn(B, L, C, generator=generator), tau)
    v_teacher, v_fake = velocity(z_tau, tau, *teacher), velocity(z_tau, tau, *student)
    value = dmd_loss(z0, z_tau, tau, v_teacher, v_fake) if loss is dmd_loss else loss(v_teacher, v_fake)
    (grad,) = torch.autograd.grad(value.sum(), z0)
    return z0.detach(), grad


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9])
def test_distribution_matching_moves_a_shifted_student_to_its_teacher(tau):
    _, grad = gradient(dmd_loss, (2.0, 1.0), (-1.0, 1.0), tau)
    assert (grad > 0).all()  # down the gradient lies the teacher's mean


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9])
def test_distribution_matching_rests_where_the_distributions_agree(tau):
    _, grad = gradient(dmd_loss, (0.5, 0.7), (0.5, 0.7), tau)
    assert grad.abs().max() < 1e-5


@pytest.mark.parametrize(("own", "sign"), [(2.0, 1), (0.5, -1)])
def test_distribution_matching_mends_the_spread(own, sign):
    """A student that is too wide is drawn together, one that is too narrow is drawn apart."""
    z0, grad = gradient(dmd_loss, (0.0, own), (0.0, 1.0), 0.3)
    assert sign * (z0 * grad).mean() > 0.01


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9])
def test_eq10_gives_a_shift_no_gradient(tau):
    _, grad = gradient(eq10_loss, (2.0, 1.0), (-1.0, 1.0), tau)
    assert grad.abs().max() < 1e-5


def test_eq10_with_the_teacher_stopped_repels_at_high_noise():
    _, near_noise = gradient(eq10_sg_teacher_loss, (2.0, 1.0), (-1.0, 1.0), 0.9)
    _, near_data = gradient(eq10_sg_teacher_loss, (2.0, 1.0), (-1.0, 1.0), 0.1)
    assert near_noise.mean() < -0.01  # the student stands to the right of its teacher and is pushed further
    assert near_data.mean() > 0.01


def test_the_normaliser_is_each_samples_own():
    """Scaling a sample's error does not change its gradient's norm."""
    z0 = torch.zeros(2, 3, 5, requires_grad=True)
    tau = torch.tensor([0.5, 0.5])
    error = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1)
    error[1] *= 100
    dmd_loss(z0, torch.zeros(2, 3, 5), tau, error, torch.zeros(2, 3, 5)).sum().backward()
    torch.testing.assert_close(z0.grad[0], z0.grad[1])


def test_given_latents_count_neither_in_the_normaliser_nor_in_the_loss():
    """A sample of which a half is given gets the gradient of the other half alone."""
    generator = torch.Generator().manual_seed(0)
    z_tau, v_teacher, v_fake = (torch.randn(1, 6, 5, generator=generator) for _ in range(3))
    tau, free = torch.tensor([0.5]), torch.tensor([0.0, 0, 0, 1, 1, 1]).view(1, 6, 1)
    whole, half = torch.zeros(1, 6, 5, requires_grad=True), torch.zeros(1, 3, 5, requires_grad=True)
    a = dmd_loss(whole, z_tau, tau, v_teacher, v_fake, free)
    b = dmd_loss(half, z_tau[:, 3:], tau, v_teacher[:, 3:], v_fake[:, 3:])
    torch.testing.assert_close(2 * a, b)
    a.sum().backward()
    b.sum().backward()
    assert not whole.grad[:, :3].any()
    torch.testing.assert_close(2 * whole.grad[:, 3:], half.grad)


def test_a_sample_that_the_teacher_reproduces_exactly_gives_finite_numbers():
    z0 = torch.zeros(1, 3, 5, requires_grad=True)
    zeros = torch.zeros(1, 3, 5)
    dmd_loss(z0, zeros, torch.tensor([0.5]), zeros, zeros).sum().backward()
    assert torch.equal(z0.grad, zeros)


def test_weights():
    tau = torch.tensor([0.25, 0.5])
    assert matching_weight(tau, "one").tolist() == [1, 1]
    assert matching_weight(tau, "kl").tolist() == pytest.approx([2.25, 0.5])


def test_hinge_losses():
    real, fake = torch.tensor([[2.0], [0.5], [-1.0]]), torch.tensor([[-2.0], [0.0], [1.0]])
    assert discriminator_loss(real, fake).tolist() == [0, 1.5, 4]
    assert adversarial_loss(fake).tolist() == [2, 0, -1]


def test_approximate_r1_and_the_contrastive_loss():
    real, other = torch.tensor([[2.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    assert approximate_r1_loss(real, other).tolist() == [0.5, 2]
    expected = [(math.log1p(math.exp(-1)) + math.log(2)) / 2, (math.log(2) + math.log1p(math.exp(2))) / 2]
    assert contrastive_loss(real, other).tolist() == pytest.approx(expected)


def test_a_steered_weight_gives_every_sample_the_asked_ratio():
    generator = torch.Generator().manual_seed(0)
    matching, adversarial = (torch.randn(3, 4, 5, generator=generator) for _ in range(2))
    adversarial[1] *= 100
    weighted = steered_weight(matching, adversarial, 0.3) * adversarial
    torch.testing.assert_close(weighted.flatten(1).norm(dim=1), 0.3 * matching.flatten(1).norm(dim=1))
    assert steered_weight(matching, torch.zeros_like(matching), 0.3).isfinite().all()


class TestCycle:
    """The number of an update decides whose turn it is."""

    def test_five_to_one_to_one_after_all_warm_ups(self):
        cycle = UpdateCycle(5, 1, 1, warm_start=2, fake_warm_up=3, discriminator_warm_up=1)
        names = [cycle.phase(i).value for i in range(6 + 14)]
        assert names[:6] == ["warm_start"] * 2 + ["fake_warm_up"] * 3 + ["discriminator_warm_up"]
        assert names[6:] == 2 * (["student"] * 5 + ["fake", "discriminator"])

    def test_rounds_end_where_the_next_begins(self):
        cycle = UpdateCycle(1, 5, 1, fake_warm_up=2)
        assert [i for i in range(20) if cycle.ends_round(i)] == [0, 1, 8, 15]

    @pytest.mark.parametrize(("steps", "rounds"), [(10, 2), (11, 3), (1, 1)])
    def test_the_last_round_is_whole(self, steps, rounds):
        cycle = UpdateCycle(5, 1, 1, warm_start=4)
        assert cycle.total_updates(steps) == 4 + 7 * rounds
        turns = [cycle.phase(i) for i in range(cycle.total_updates(steps))]
        assert turns.count(Phase.STUDENT) == 5 * rounds >= steps
        assert turns.count(Phase.FAKE) * 5 == turns.count(Phase.STUDENT)

    @pytest.mark.parametrize("phases", [(p,) for p in Phase] + [(Phase.FAKE_WARM_UP, Phase.FAKE)])
    def test_turns_are_counted(self, phases):
        cycle = UpdateCycle(3, 2, 1, warm_start=4, fake_warm_up=5, discriminator_warm_up=2)
        for update in range(30):
            assert cycle.count(phases, update) == sum(cycle.phase(i) in phases for i in range(update))
