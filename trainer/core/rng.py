"""Random numbers that belong to a sample, never to a rank.

Every draw is a function of (seed, step, index in the global batch, purpose). A run therefore draws the same numbers for
the same samples on any number of ranks, and after resuming.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """Use of the numbers. Each purpose has its own stream."""

    CONDITIONS = 0  # task, caption, masks, dropout
    NOISE = 1  # noise and noise levels of flow matching
    LATENT = 2  # sampling a latent from its mean and deviation
    ROLLOUT = 3  # the noise of each of a student's steps
    PERTURBATION = 4  # noise and noise levels for teacher and fake model
    CRITIC = 5  # noise and noise levels for the discriminator
    INTERVAL = 6  # which of the student's steps an update trains; drawn once per update, with index 0
    SILENCE = 7  # the part of a silence that follows a clip, for a network that generates more than a clip
    GUIDANCE = 8  # noise and noise levels for the guidance's part of distribution matching


def sample_rng(seed: int, step: int, index: int, purpose: Purpose) -> np.random.Generator:
    """An independent generator for one sample of one step (Philox, counter-based)."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, index, step]))
