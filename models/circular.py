"""Latents that close to a circle: the last frame precedes the first, for sounds that loop.

B batch, F frames of the loop, L frames of the network, C latent channels.
"""

import torch
from torch import Tensor

from .sampler import Velocity


def circular_velocity(velocity: Velocity, frames: int, network_frames: int, steps: int) -> Velocity:
    """The velocity of latents (B, F, C) on a circle, F ≤ L, from that of the network's latents (B, L, C).

    The network sees windows of L frames along the circle, which begin at frame 0 in the first step, at half the loop in
    the second, and so on: wherever one step had the ends of its window, the next has its middle. The last step sees
    both windows. Where windows overlap, with themselves too, a frame counts by its distance from the window's ends. So
    the network is evaluated `steps` + 1 times; the velocity is to be called `steps` times, as a sampler does.
    """
    halves = (0, frames // 2)
    turns = iter([*((halves[step % 2],) for step in range(steps - 1)), halves])
    places = torch.arange(network_frames)
    distance = torch.minimum(places + 1, network_frames - places).float()

    def on_circle(z: Tensor, t: Tensor) -> Tensor:
        total, weights = torch.zeros_like(z, dtype=torch.float32), torch.zeros(frames, device=z.device)
        for begin in next(turns):
            index, weight = ((begin + places) % frames).to(z.device), distance.to(z.device)
            total.index_add_(1, index, velocity(z[:, index], t).float() * weight[:, None])
            weights.index_add_(0, index, weight)
        return total / weights[:, None]

    return on_circle
