"""Flow matching (section IV-B): z_t = t·z_1 + (1-t)·z_0, noise at t = 1, velocity u = z_1 - z_0, so z_0 = z_t - t·v.

B batch, L latent frames, C latent channels.
"""

import torch
from torch import Tensor


def interpolate(z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:
    """z_t (B, L, C) between data z0 and noise z1, each (B, L, C), at t (B,) (Eq. 2)."""
    t = t[:, None, None]
    return t * z1 + (1 - t) * z0


def clean_estimate(zt: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """z_0 (B, L, C) from a velocity (Eq. 5)."""
    return zt - t[:, None, None] * v


def noise_estimate(zt: Tensor, z0: Tensor, t: Tensor) -> Tensor:
    """z_1 (B, L, C) from z_t and an estimate of z_0."""
    t = t[:, None, None]
    return (zt - (1 - t) * z0) / t


def flow_matching_loss(v: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
    """Each sample's mean squared error (B,) in float32 of a velocity v (B, L, C) against z_1 - z_0 (Eq. 3, 4)."""
    return velocity_loss(v, z1 - z0)


def velocity_loss(v: Tensor, target: Tensor) -> Tensor:
    """Each sample's mean squared error (B,) in float32 of a velocity (B, L, C)."""
    return (v.float() - target.float()).square().flatten(1).mean(1)


def timesteps_from_uniform(uniform: Tensor, kind: str, mean: float, even: float) -> Tensor:
    """Noise levels in (0, 1) from uniform draws of the same shape: as they are, or as a logit-normal law with this
    mean and deviation 1, of which a share `even` stays uniform."""
    if kind == "uniform":
        return uniform
    draws = uniform.double()
    rest = ((draws - even) / (1 - even)).clamp(1e-7, 1 - 1e-7)
    logit_normal = torch.sigmoid(mean + torch.special.ndtri(rest))
    return torch.where(draws < even, draws / max(even, 1e-7), logit_normal).to(uniform.dtype)
