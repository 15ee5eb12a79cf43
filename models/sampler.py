"""Samplers: Euler steps of the flow ODE with guidance, and the few-step student's denoise and renoise.

B batch, L latent frames, C latent channels, W width.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .audiox import Kind, SamplingConfig

Velocity = Callable[[Tensor, Tensor], Tensor]  # (z (B, L, C), t (B,)) -> v (B, L, C)
Draw = Callable[[], Tensor]  # fresh noise (B, L, C) at every call


def with_guidance(
    conditioned: Callable[[Tensor, Tensor], Velocity],
    condition: tuple[Tensor, Tensor],
    unconditional: tuple[Tensor, Tensor],
    guidance: float,
    rescale: float = 0.0,
) -> Velocity:
    """v_uncond + guidance·(v_cond - v_uncond) (section VI-A), both branches in one forward of 2·B samples.

    `conditioned` gives the velocity under H_c (B, N, W) and lengths (B,), which `condition` and `unconditional` are; it
    is called once. With guidance 1 only the condition is evaluated.
    """
    if guidance == 1:
        return conditioned(*condition)
    tokens = max(condition[0].shape[1], unconditional[0].shape[1])
    both = torch.cat([_pad(h, tokens) for h in (condition[0], unconditional[0])])
    velocity = conditioned(both, torch.cat((condition[1], unconditional[1])))
    return lambda z, t: apply_guidance(velocity(z.repeat(2, 1, 1), t.repeat(2)), guidance, rescale)


def apply_guidance(both: Tensor, guidance: float, rescale: float = 0.0) -> Tensor:
    """The guided velocity (B, L, C) from those of the conditional and the unconditional branch (2·B, L, C).

    Of it a share `rescale` is scaled, frame by frame, to the deviation that the conditional branch has over the
    channels (Lin et al., 2024).
    """
    v, v_uncond = both.float().chunk(2)
    guided = v_uncond + guidance * (v - v_uncond)
    if not rescale:
        return guided
    deviation, own = (x.std(-1, keepdim=True) for x in (v, guided))
    return rescale * guided * (deviation / own.clamp_min(1e-12)) + (1 - rescale) * guided


def sample(
    velocity: Velocity, draw: Draw, sampling: SamplingConfig, known: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Latents (B, L, C) by the sampler and noise levels of `sampling`; its guidance is in `velocity` already."""
    times = sampling_timesteps(sampling)
    if sampling.sampler == "renoise":
        return renoise(velocity, draw(), times, draw, known, mask)
    return euler(velocity, draw(), times, known, mask)


def sampling_timesteps(sampling: SamplingConfig) -> list[float]:
    """From 1 to 0, one more than there are steps."""
    return [*sampling.timesteps, 0.0] if sampling.timesteps else shifted_timesteps(sampling.steps, sampling.shift)


def shifted_timesteps(steps: int, shift: float = 1.0) -> list[float]:
    """Noise levels from 1 to 0, `steps` + 1 of them: equal steps of u, t = shift·u/(1 + (shift - 1)·u)."""
    u = [1 - k / steps for k in range(steps + 1)]
    return [shift * x / (1 + (shift - 1) * x) for x in u]


def euler(
    velocity: Velocity,
    noise: Tensor,
    times: Sequence[float],
    known: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Integrate dz/dt = v from noise (B, L, C) over noise levels that fall from 1 to 0.

    Where `mask` (B, L, 1) is 1, the clean latents `known` (B, L, C) are given: z follows their straight path and ends
    exactly there.
    """
    z = noise
    for t, t_next in itertools.pairwise(times):
        v = velocity(z, torch.full((z.shape[0],), t, device=z.device))
        z = z + (t_next - t) * v.float()
        if known is not None and mask is not None:
            z = torch.where(mask > 0, t_next * noise + (1 - t_next) * known, z)
    return z


def renoise(
    velocity: Velocity,
    noise: Tensor,
    times: Sequence[float],
    draw: Draw,
    known: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Denoise to a clean estimate, then add fresh noise up to the next level; the levels fall from 1 to 0 (section V).

    Fresh noise removes errors of earlier steps: with many steps, a teacher with little training follows its text better
    than with `euler`.
    """
    z, clean = noise, noise
    for t, t_next in itertools.pairwise(times):
        v = velocity(z, torch.full((z.shape[0],), t, device=z.device))
        clean = z - t * v.float()
        if known is not None and mask is not None:
            clean = torch.where(mask > 0, known, clean)
        if t_next > 0:
            z = t_next * draw() + (1 - t_next) * clean
    return clean


def _pad(h: Tensor, tokens: int) -> Tensor:
    return torch.nn.functional.pad(h, (0, 0, 0, tokens - h.shape[1]))


def override_sampling(
    sampling: SamplingConfig,
    steps: int | None,
    guidance: float | None,
    kind: Kind | None = None,
    rescale: float | None = None,
) -> SamplingConfig:
    """The sampling of some weights, with a user's settings in place of theirs.

    Raises:
        ValueError: there is no step, or the guidance is negative or not finite.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps: {steps}; a sampler takes at least 1")
    if guidance is not None and not 0 <= guidance < math.inf:
        raise ValueError(f"guidance: {guidance} must be 0 or more; 1 is none, the weights have {sampling.guidance:g}")
    return replace(
        sampling,
        sampler=kind or sampling.sampler,
        steps=sampling.steps if steps is None else steps,
        timesteps=sampling.timesteps if steps in (None, sampling.steps) else (),
        guidance=sampling.guidance if guidance is None else guidance,
        rescale=sampling.rescale if rescale is None else rescale,
    )


def nfe(sampling: SamplingConfig) -> int:
    """Function evaluations per clip (section VI-B); guidance evaluates every step twice."""
    return sampling.steps * (1 if sampling.guidance == 1 else 2)
