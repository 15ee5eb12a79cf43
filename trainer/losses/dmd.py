"""Distribution matching under flow matching (section V-A): what moves the student towards the teacher's distribution.

z_τ = τ·z_1 + (1 - τ)·ẑ_0 perturbs the student's estimate ẑ_0 (Eq. 6); teacher and fake model answer with velocities
there, of which x_0 = z_τ - τ·v are clean estimates. B batch, L latent frames, C latent channels; every loss is (B,) in
float32, a mean over L and C.
"""

import torch
from torch import Tensor

from .flow_matching import clean_estimate

SMALLEST = 1e-4  # of DMD's normaliser: a sample that the teacher reproduces exactly must not divide by zero


def dmd_loss(
    z0: Tensor, z_tau: Tensor, tau: Tensor, v_teacher: Tensor, v_fake: Tensor, free: Tensor | None = None
) -> Tensor:
    """Gradient of the KL divergence (Eq. 7 before it is squared; Yin et al., 2024) as a loss, ½·(ẑ_0 - sg(ẑ_0 - g))²
    with g = (x_0,fake - x_0,teacher) / mean|ẑ_0 - x_0,teacher|: dL/dẑ_0 is g/(L·C).

    z0 is ẑ_0 with its gradient; no gradient passes through z_tau, the velocities or the normaliser. Latents that are
    given, where `free` (B, L, 1) is 0, count neither in the loss nor in the normaliser.
    """
    free = torch.ones_like(z0[..., :1]) if free is None else free
    with torch.no_grad():
        real = clean_estimate(z_tau.float(), v_teacher.float(), tau)
        fake = clean_estimate(z_tau.float(), v_fake.float(), tau)
        count = free.flatten(1).sum(1).clamp_min(1) * z0.shape[-1]
        scale = ((z0.float() - real).abs() * free).flatten(1).sum(1) / count
        target = z0.float() - (fake - real) / scale.clamp_min(SMALLEST)[:, None, None]
    return 0.5 * ((z0.float() - target).square() * free).flatten(1).mean(1)


def eq10_loss(v_teacher: Tensor, v_fake: Tensor) -> Tensor:
    """Eq. 10 as it is printed: the squared difference of the velocities, differentiated through both networks.

    A student whose distribution is the teacher's shifted as a whole gets no gradient from it.
    """
    return (v_teacher.float() - v_fake.float()).square().flatten(1).mean(1)


def eq10_sg_teacher_loss(v_teacher: Tensor, v_fake: Tensor) -> Tensor:
    """Eq. 10 with the teacher's branch stopped, as Fig. 5 draws it. At high noise it pushes samples away from the
    teacher's."""
    return eq10_loss(v_teacher.detach(), v_fake)


def matching_loss(
    kind: str, z0: Tensor, z_tau: Tensor, tau: Tensor, v_teacher: Tensor, v_fake: Tensor, free: Tensor
) -> Tensor:
    """One of the three by name: "dmd", "eq10" or "eq10_sg_teacher"."""
    if kind == "dmd":
        return dmd_loss(z0, z_tau, tau, v_teacher, v_fake, free)
    return eq10_loss(v_teacher, v_fake) if kind == "eq10" else eq10_sg_teacher_loss(v_teacher, v_fake)


def matching_weight(tau: Tensor, kind: str) -> Tensor:
    """ω_τ (B,): 1, or (1 - τ)²/τ, with which `dmd_loss` has the KL divergence's own gradient but for the size of its
    normaliser."""
    return torch.ones_like(tau) if kind == "one" else (1 - tau).square() / tau
