"""Latents on a circle: what looks at neighbours sees the first frame after the last one."""

import pytest
import torch

from audiox_trainer.models.audiox import SamplingConfig
from audiox_trainer.models.circular import circular_velocity
from audiox_trainer.models.sampler import sample

FRAMES, CHANNELS, BATCH = 48, 2, 8
PLACES = torch.arange(FRAMES, dtype=torch.float64)
# Smooth curves whose ends have nothing to do with each other: a Gaussian process along the frames.
COVARIANCE = torch.exp(-((PLACES[:, None] - PLACES) ** 2) / (2 * 4.0**2)) + 1e-6 * torch.eye(FRAMES)


def velocity(z, t):
    """E[z_1 - z_0 | z_t] of such curves, exactly."""
    t = float(t[0])
    of_z = t**2 * torch.eye(FRAMES, dtype=torch.float64) + (1 - t) ** 2 * COVARIANCE
    gain = torch.linalg.solve(of_z, t * torch.eye(FRAMES, dtype=torch.float64) - (1 - t) * COVARIANCE)
    return torch.einsum("lk,bkc->blc", gain.T, z.double()).float()


def sampled(sampling, frames=None):
    generator = torch.Generator().manual_seed(0)
    shape = BATCH, frames or FRAMES, CHANNELS
    at = velocity if frames is None else circular_velocity(velocity, frames, FRAMES, sampling.steps)
    return sample(at, lambda: torch.randn(shape, generator=generator), sampling)


def jumps(z):
    """The mean jump from the last frame to the first, over that between neighbours inside."""
    return float((z[:, 0] - z[:, -1]).square().mean().sqrt() / z.diff(dim=1).square().mean().sqrt())


@pytest.mark.parametrize("frames", [FRAMES, 31, 20])
@pytest.mark.parametrize("kind", ["euler", "renoise"])
def test_the_joint_is_as_smooth_as_the_inside(kind, frames):
    sampling = SamplingConfig(kind, 25 if kind == "euler" else 4)
    cut, looped = sampled(sampling)[:, :frames], sampled(sampling, frames)
    assert looped.shape == cut.shape
    assert jumps(cut) > 3
    assert jumps(looped) < 1.3
    assert looped.std() > 0.5  # and it is no constant


def test_windows_and_evaluations():
    seen = []

    def constant(z, t):
        seen.append(z[0, :, 0].tolist())
        return torch.ones_like(z)

    z = torch.arange(6.0)[None, :, None]
    at = circular_velocity(constant, 6, 8, 3)
    assert all(torch.equal(at(z, torch.ones(1)), torch.ones_like(z)) for _ in range(3))
    first, second = [0.0, 1, 2, 3, 4, 5, 0, 1], [3.0, 4, 5, 0, 1, 2, 3, 4]
    assert seen == [first, second, first, second]
