"""Quality metrics (section VI-B) and bootstrap intervals, as pure functions.

The intervals are our own: scipy's bootstrap refuses a single value, which a benchmark of one prompt per type has.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
RESAMPLES = 200  # of a metric that is not a mean: each takes a matrix decomposition


def bootstrap_interval(values: NDArray[np.generic], seed: int, resamples: int = 2000) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` (N,), such as the booleans of `Scores`.

    Raises:
        ValueError: there are no values.
    """
    if values.size == 0:
        raise ValueError("0 values have no mean; draw at least one prompt of the type")
    return _percentiles(values.astype(np.float64)[_resample(values.size, seed, resamples)].mean(axis=1))


def paired_ratio(below: Floats, above: Floats, seed: int, resamples: int = 2000) -> tuple[float, float, float]:
    """mean(above) / mean(below) of paired values (N,), and its 95 % percentile interval: every resample takes the same
    places of both."""
    drawn = _resample(below.size, seed, resamples)
    low, high = _percentiles(above[drawn].mean(axis=1) / np.maximum(below[drawn].mean(axis=1), 1e-9))
    return float(above.mean() / max(below.mean(), 1e-9)), low, high


def metric_interval(metric: Callable[[Tensor], float], count: int, seed: int) -> tuple[float, float, float]:
    """A metric of a set of clips, given as indices (N,), with a 95 % interval.

    The interval has the width of the bootstrap's and is centred on the value: resampling repeats clips, which raises an
    FD and would shift the whole interval. The bias of few clips is not in it.
    """
    value = metric(torch.arange(count))
    rng = np.random.default_rng(seed)
    draws = np.array([metric(torch.from_numpy(rng.integers(count, size=count))) for _ in range(RESAMPLES)])
    low, high = _percentiles(draws - np.median(draws))
    return value, max(0.0, value + low), value + high


def _resample(count: int, seed: int, resamples: int) -> NDArray[np.integer]:
    return np.random.default_rng(seed).integers(count, size=(resamples, count))


def _percentiles(draws: Floats) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Distance of the Gaussians fitted to two sets of embeddings (N, E) and (M, E) (Heusel et al., 2017):
    |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) with the covariances A and B.

    Raises:
        ValueError: a set has fewer than two embeddings.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"sets of {len(a)} and {len(b)} embeddings; a covariance needs at least 2 in each")
    a, b = a.double(), b.double()
    shift = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    # (A B)^(1/2) has the trace of (R B R)^(1/2) with R = A^(1/2), which is symmetric and so safe to decompose.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return max(0.0, float(shift + cov_a.trace() + cov_b.trace() - 2 * cross))


def kl_divergence(reference: Tensor, generated: Tensor) -> float:
    """Mean KL(reference || generated) in nats over pairs of class distributions, (N, classes) each with rows summing to
    1 (appendix A-B). Row i of both belongs to the same prompt."""
    p, q = reference.double().clamp_min(1e-9), generated.double().clamp_min(1e-9)
    return float((p * (p.log() - q.log())).sum(dim=1).mean())


def inception_score(probabilities: Tensor) -> float:
    """exp of the mean KL from each clip's class distribution to their mean (appendix A-B).

    probabilities (N, classes), rows summing to 1 -> between 1 and `classes`.
    """
    p = probabilities.double().clamp_min(1e-9)
    return float((p * (p.log() - p.mean(dim=0).log())).sum(dim=1).mean().exp())
