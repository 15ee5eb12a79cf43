"""The statistics give what other libraries give (reference_values.py) and mean what they say."""

import json

import numpy as np
import pytest
import torch

from audiox_trainer.trainer.scorers.statistics import (
    frechet_at_infinity,
    frechet_distance,
    holm,
    inception_score,
    kl_divergence,
    kl_divergences,
    paired_difference,
    paired_metric_difference,
)
from tests.scorers.reference_values import FILE, random_features, random_logits

VALUES = json.loads(FILE.read_text())["statistics"]


def test_other_libraries_agree():
    near = {"rel": 1e-6, "abs": 1e-6}
    a, b = random_features(1, 500, 16), random_features(2, 400, 16)
    assert frechet_distance(a, b) == pytest.approx(VALUES["frechet"], **near)
    p, q = random_logits(5, 103, 9).softmax(1), random_logits(6, 103, 9).softmax(1)
    assert kl_divergence(p, q) == pytest.approx(VALUES["kl"], **near)
    assert inception_score(p, parts=10) == pytest.approx(VALUES["inception"], **near)


def test_few_clips_in_many_dimensions():
    """scipy's root of a singular covariance is exact to the small term that it needs."""
    few, others = random_features(3, 30, 64), random_features(4, 25, 64)
    assert frechet_distance(few, others) == pytest.approx(VALUES["frechet_few"], rel=1e-4)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)


def test_infinity_takes_the_bias_away():
    rng = torch.Generator().manual_seed(0)
    real = torch.randn(20_000, 8, generator=rng, dtype=torch.float64)
    few = torch.randn(100, 8, generator=rng, dtype=torch.float64)
    biased, unbiased = frechet_distance(few, real), frechet_at_infinity(few, real, seed=0)
    assert biased > 0.15 and abs(unbiased) < 0.6 * biased
    with pytest.raises(ValueError, match="at least 20"):
        frechet_at_infinity(few[:19], real, seed=0)


def test_epsilon_limits_a_divergence():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])
    assert float(kl_divergences(p, q, epsilon=1e-6)) == pytest.approx(0.5 * np.log(0.5) + 0.5 * np.log(0.5e6), rel=1e-5)
    with pytest.raises(ValueError, match="1 clips cannot make 10 parts"):
        inception_score(p, parts=10)


def test_paired_differences_of_means():
    rng = np.random.default_rng(0)
    first = rng.standard_normal(200)
    better = paired_difference(first, first + 0.1 + 0.2 * rng.standard_normal(200), seed=0)
    assert better.low > 0 and better.p < 0.01 and better.value == pytest.approx(0.1, abs=0.05)
    same = paired_difference(first, first + 0.2 * rng.standard_normal(200), seed=0)
    assert same.low < 0 < same.high and same.p > 0.05
    none = paired_difference(first, first, seed=0)
    assert (none.value, none.p) == (0.0, 1.0)


def test_paired_differences_of_other_metrics():
    rng = torch.Generator().manual_seed(0)
    real = torch.randn(100, 4, generator=rng)
    near, far = real + 0.1 * torch.randn(100, 4, generator=rng), real + 1.0

    def metric(index, from_second):
        return frechet_distance(torch.where(from_second[:, None], far[index], near[index]), real[index])

    difference = paired_metric_difference(metric, 100, seed=0, resamples=99)
    assert difference.value == pytest.approx(frechet_distance(far, real) - frechet_distance(near, real))
    assert difference.p == pytest.approx(0.01) and difference.low > 0
    shuffled = paired_metric_difference(lambda i, s: metric(i, (torch.arange(100) % 2 == 0) ^ s), 100, 0, 99)
    assert shuffled.p > 0.05 and shuffled.low < shuffled.value < shuffled.high


def test_holm_corrects_for_the_number_of_comparisons():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
