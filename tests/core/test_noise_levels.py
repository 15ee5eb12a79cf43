"""Distributions of noise levels, against those of torch."""

import numpy as np
import pytest
import torch

from audiox_trainer.trainer.core.noise_levels import NoiseLevels
from tests.helpers.reference_distillation import Plain

DRAWS = torch.arange(100, dtype=torch.float64) / 100
KINDS = [
    NoiseLevels(),
    NoiseLevels((0.0, 1.0), shift=5.0),
    NoiseLevels((0.1, 0.95), "logit_normal", mean=0.8, std=1.5),
    NoiseLevels((0.0, 1.0), "logit_normal", shift=3.0),
    NoiseLevels((0.02, 0.9), "log_normal", mean=-1.0, std=0.7, shift=2.0),
]


@pytest.mark.parametrize("levels", KINDS, ids=str)
def test_levels_are_the_quantiles_of_the_cut_distribution(levels):
    found = torch.tensor([levels.from_uniform(u) for u in DRAWS.tolist()], dtype=torch.float64)
    assert levels.range[0] <= found.min() and found.max() <= levels.range[1]
    assert (found.diff() > 0).all()
    torch.testing.assert_close(found[1:], Plain.levels(DRAWS, levels)[1:], rtol=1e-6, atol=1e-9)


def test_a_shift_draws_more_noise_and_the_range_holds():
    plain, shifted = (np.array([NoiseLevels(shift=s).from_uniform(u) for u in DRAWS.tolist()]) for s in (1.0, 5.0))
    assert (plain > 0.9).mean() == pytest.approx(0.08, abs=0.02)
    assert (shifted > 0.9).mean() == pytest.approx(0.29, abs=0.02)  # by hand: 0.643 to 0.907 of 0.004 to 0.907
