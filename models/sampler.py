"""Samplers: Euler steps of the flow ODE with guidance, and the few-step student's denoise and renoise.

B batch, L latent frames, C latent channels, W width.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .audiox import Kind, SamplingConfig
from .interval import shifted

Velocity = Callable[[Tensor, Tensor], Tensor]  # (z (B, L, C), t (B,)) -> v (B, L, C)
Draw = Callable[[], Tensor]  # fresh noise (B, L, C) at every call


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (section VI-A) at the noise levels of an interval, and none elsewhere (Kynkäänniemi et
    al., 2024)."""

    scale: float  # 1 is none
    interval: Sequence[float] = (0.0, 1.0)  # lowest and highest level

    def at(self, t: float) -> float:
        """The scale at a noise level."""
        return self.scale if self.interval[0] <= t <= self.interval[1] else 1.0

    def of(self, t: Tensor) -> float | Tensor:
        """The scales at noise levels (B,): (B, 1, 1), or a number if it is the same for all levels."""
        low, high = self.interval
        if (low, high) == (0, 1):
            return self.scale
        return torch.where((t >= low) & (t <= high), self.scale, 1.0)[:, None, None]


def guidance_scales(sampling: SamplingConfig, level: float = 1.0) -> list[float]:
    """The guidance of each evaluation of a sampling that begins at `level`."""
    guidance = Guidance(sampling.guidance, sampling.guidance_interval)
    return [guidance.at(t) for t in sampling_timesteps(sampling, level)[:-1]]


def with_guidance(
    conditioned: Callable[[Tensor, Tensor], Velocity],
    condition: tuple[Tensor, Tensor],
    unconditional: tuple[Tensor, Tensor],
    scales: Sequence[float],
    rescale: float = 0.0,
) -> Velocity:
    """v_uncond + guidance·(v_cond - v_uncond) (section VI-A), both branches in one forward of 2·B samples.

    `conditioned` gives the velocity under H_c (B, N, W) and lengths (B,), which `condition` and `unconditional` are.
    `scales` are the guidance of each evaluation in turn. Where it is 1 only the condition is evaluated.
    """

    def guided(guidance: float) -> Velocity:
        tokens = max(condition[0].shape[1], unconditional[0].shape[1])
        both = torch.cat([_pad(h, tokens) for h in (condition[0], unconditional[0])])
        velocity = conditioned(both, torch.cat((condition[1], unconditional[1])))
        return lambda z, t: apply_guidance(velocity(z.repeat(2, 1, 1), t.repeat(2)), guidance, rescale)

    return by_scale(scales, lambda: conditioned(*condition), guided)


def by_scale(scales: Sequence[float], plain: Callable[[], Velocity], guided: Callable[[float], Velocity]) -> Velocity:
    """The velocity of evaluations with these scales in turn: `plain` where it is 1. Each is made once."""
    kinds = {scale: plain() if scale == 1 else guided(scale) for scale in dict.fromkeys(scales)}
    if len(kinds) == 1:
        return kinds[scales[0]]
    turns = iter(scales)
    return lambda z, t: kinds[next(turns)](z, t)


def apply_guidance(both: Tensor, guidance: float | Tensor, rescale: float = 0.0) -> Tensor:
    """The guided velocity (B, L, C) from those of the conditional and the unconditional branch (2·B, L, C), with one
    scale for all samples or (B, 1, 1).

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
    velocity: Velocity,
    draw: Draw,
    sampling: SamplingConfig,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    initial: Tensor | None = None,
    level: float = 1.0,
) -> Tensor:
    """Latents (B, L, C) by the sampler and noise levels of `sampling`; its guidance is in `velocity` already. A
    variation of `initial` (B, L, C) begins at the noise level `level`, and all others are that many times lower."""
    times, noise = sampling_timesteps(sampling, level), draw()
    start = None if initial is None else level * noise + (1 - level) * initial
    if sampling.sampler == "renoise":
        return renoise(velocity, noise if start is None else start, times, draw, known, mask)
    return euler(velocity, noise, times, known, mask, start)


def sampling_timesteps(sampling: SamplingConfig, level: float = 1.0) -> list[float]:
    """From 1, or from `level`, to 0, one more than there are steps."""
    times = [*sampling.timesteps, 0.0] if sampling.timesteps else shifted_timesteps(sampling.steps, sampling.shift)
    return [level * t for t in times]


def shifted_timesteps(steps: int, shift: float = 1.0, start: float = 1.0) -> list[float]:
    """Noise levels from `start` to 0, `steps` + 1 of them, at equal steps before the shift."""
    first = shifted(start, 1 / shift)
    return [start, *(shifted(first * (1 - k / steps), shift) for k in range(1, steps + 1))]


def euler(
    velocity: Velocity,
    noise: Tensor,
    times: Sequence[float],
    known: Tensor | None = None,
    mask: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Integrate dz/dt = v from noise (B, L, C) over noise levels that fall from 1 to 0, or from `start`, which has this
    noise at the first level.

    Where `mask` (B, L, 1) is 1, the clean latents `known` (B, L, C) are given: z follows their straight path and ends
    exactly there.
    """
    z = noise if start is None else start
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
    interval: Sequence[float] | None = None,
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
        guidance_interval=sampling.guidance_interval if interval is None else tuple(interval),
        rescale=sampling.rescale if rescale is None else rescale,
    )


def sampling_words(sampling: SamplingConfig) -> str:
    """Sampler, steps and guidance, for people."""
    guidance = guidance_words(sampling.guidance, sampling.guidance_interval)
    return f"{sampling.sampler}, {sampling.steps} steps, guidance {guidance}"


def guidance_words(guidance: float, interval: Sequence[float]) -> str:
    """The scale, and the noise levels where it is not that of all."""
    low, high = interval
    return f"{guidance:g}" + ("" if (low, high) == (0, 1) else f" from {low:g} to {high:g}")


def nfe(sampling: SamplingConfig) -> int:
    """Function evaluations per clip (section VI-B); a step with guidance takes two."""
    return sum(1 if scale == 1 else 2 for scale in guidance_scales(sampling))
