"""Randomness that belongs to a sample, never to a rank.

Every draw is a function of (seed, step, place in the global batch, purpose), so that a run draws the same numbers for
the same samples however many ranks share the work, and after any resume.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What the numbers are for; each purpose has its own stream."""

    CONDITIONS = 0  # task, caption, masks, dropout
    NOISE = 1  # noise and noise levels of flow matching
    LATENT = 2  # the draw from a latent's mean and deviation
    ROLLOUT = 3  # a student's noise, step by step
    PERTURBATION = 4  # noise and noise levels at which teacher and fake model are asked
    CRITIC = 5  # the same for the discriminator
    INTERVAL = 6  # which of a student's steps an update trains; of place 0 for all samples


def sample_rng(seed: int, step: int, place: int, purpose: Purpose) -> np.random.Generator:
    """An independent generator for one sample of one step (Philox, counter-based)."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, place, step]))
