"""Quality metrics (section VI-B), bootstrap intervals and paired comparisons, as pure functions.

The intervals are our own: scipy's bootstrap refuses a single value, which a benchmark of one prompt per type has.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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


def metric_interval(
    metric: Callable[[Tensor], float], count: int, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """A metric of a set of clips, given as indices (N,), with a 95 % interval.

    The interval has the width of the bootstrap's and is centred on the value: resampling repeats clips, which raises an
    FD and would shift the whole interval. The bias of few clips is not in it.
    """
    value = metric(torch.arange(count))
    rng = np.random.default_rng(seed)
    draws = np.array([metric(torch.from_numpy(rng.integers(count, size=count))) for _ in range(resamples)])
    low, high = _percentiles(draws - np.median(draws))
    return value, max(0.0, value + low), value + high


@dataclass(frozen=True)
class Difference:
    """The second metric minus the first on the same clips, with a 95 % interval, and the probability that clips which
    do not differ in kind give as large a difference."""

    value: float
    low: float
    high: float
    p: float


def paired_difference(first: Floats, second: Floats, seed: int, resamples: int = 2000) -> Difference:
    """Of the means of paired values (N,). The probability is that of changing the signs of differences at random."""
    differences = second - first
    low, high = bootstrap_interval(differences, seed, resamples)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(resamples, differences.size))
    value = float(differences.mean())
    as_large = np.abs((signs * differences).mean(axis=1)) >= abs(value) * (1 - 1e-12)
    return Difference(value, low, high, _probability(as_large))


def paired_metric_difference(
    metric: Callable[[Tensor, Tensor], float], count: int, seed: int, resamples: int = RESAMPLES
) -> Difference:
    """Of a metric that is no mean. `metric` takes for every clip of a set its index (N,), and whether it is taken from
    the second system (N,) rather than the first. The interval resamples clips, the same ones of both systems; the
    probability is that of exchanging the two sounds of a clip at random."""
    rng, every = np.random.default_rng(seed), torch.arange(count)
    none, all_ = torch.zeros(count, dtype=torch.bool), torch.ones(count, dtype=torch.bool)
    value = metric(every, all_) - metric(every, none)
    draws = np.empty(resamples)
    exchanged = np.empty(resamples)
    for i in range(resamples):
        drawn = torch.from_numpy(rng.integers(count, size=count))
        draws[i] = metric(drawn, all_) - metric(drawn, none)
        swap = torch.from_numpy(rng.random(count) < 0.5)
        exchanged[i] = metric(every, ~swap) - metric(every, swap)
    low, high = _percentiles(draws - np.median(draws))  # centred, as in `metric_interval`
    return Difference(value, value + low, value + high, _probability(np.abs(exchanged) >= abs(value) * (1 - 1e-12)))


def holm(probabilities: Sequence[float]) -> list[float]:
    """Probabilities after the number of comparisons (Holm, 1979), in their order: below 0.05 a difference is
    significant."""
    order, adjusted, largest = np.argsort(probabilities), [1.0] * len(probabilities), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * probabilities[index]))
        adjusted[index] = largest
    return adjusted


def mark_significant(differences: Sequence[dict[str, Any]]) -> None:
    """Adds to rows with a probability `p` what it is after their number, and whether the difference is significant."""
    for row, p in zip(differences, holm([row["p"] for row in differences]), strict=True):
        row |= {"p_holm": p, "significant": p < 0.05}


def _probability(as_large: NDArray[np.bool_]) -> float:
    return float((1 + np.count_nonzero(as_large)) / (1 + as_large.size))


def _resample(count: int, seed: int, resamples: int) -> NDArray[np.integer]:
    return np.random.default_rng(seed).integers(count, size=(resamples, count))


def _percentiles(draws: Floats) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Distance of the Gaussians fitted to two sets of embeddings (N, E) and (M, E) (Heusel et al., 2017):
    |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) with the covariances A and B.

    With few clips it is too large by about a constant over N: compare only sets of the same size, or use
    `frechet_at_infinity`.

    Raises:
        ValueError: a set has fewer than two embeddings.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"sets of {len(a)} and {len(b)} embeddings; a covariance needs at least 2 in each")
    a, b = a.double(), b.double()
    shift = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    # With A = R'R and B = S'S the eigenvalues of A B are the squared singular values of R S'. No covariance is formed
    # and no root of a singular matrix is taken, so that fewer clips than dimensions need no correction.
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    return max(0.0, float(shift + root_a.square().sum() + root_b.square().sum() - 2 * cross))


def _covariance_root(x: Tensor) -> Tensor:
    """(N, E) -> R (at most E rows, E), R'R being the covariance."""
    centred = (x - x.mean(dim=0)) / (len(x) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R if len(x) > x.shape[1] else centred


def frechet_at_infinity(generated: Tensor, reference: Tensor, seed: int, sizes: int = 15) -> float:
    """FD without the bias of few generated clips (Chong and Forsyth, 2020): FD of random parts of `generated` (N, E)
    with N/10 to N rows falls on a line over 1/size, whose value at 0 is returned.

    Raises:
        ValueError: there are fewer than 20 rows to draw parts from.
    """
    if len(generated) < 20:
        raise ValueError(f"{len(generated)} embeddings; parts of them need at least 20")
    draw = torch.Generator().manual_seed(seed)
    counts = np.linspace(max(2, len(generated) // 10), len(generated), sizes).round().astype(int)
    parts = [torch.randperm(len(generated), generator=draw)[:count] for count in counts.tolist()]
    values = [frechet_distance(generated[part], reference) for part in parts]
    return float(np.polynomial.Polynomial.fit(1 / counts, values, 1).convert().coef[0])


def kl_divergences(reference: Tensor, generated: Tensor, epsilon: float = 0.0) -> Tensor:
    """KL(reference || generated) in nats of each pair of class distributions, (N, classes) each with rows summing to 1
    -> (N,). Row i of both belongs to the same prompt; `epsilon` is added to the generated probabilities."""
    p, q = reference.double().clamp_min(1e-9), (generated.double() + epsilon).clamp_min(1e-9)
    return (p * (p.log() - q.log())).sum(dim=1)


def kl_divergence(reference: Tensor, generated: Tensor) -> float:
    """Mean of `kl_divergences` (appendix A-B)."""
    return float(kl_divergences(reference, generated).mean())


def inception_score(probabilities: Tensor, parts: int = 1) -> float:
    """exp of the mean KL from each clip's class distribution to their mean (appendix A-B): the mean over `parts` of
    consecutive clips, equally large but for one clip.

    probabilities (N, classes), rows summing to 1 -> between 1 and `classes`.

    Raises:
        ValueError: there are fewer clips than parts.
    """
    count = len(probabilities)
    if count < parts:
        raise ValueError(f"{count} clips cannot make {parts} parts of an inception score")
    scores = []
    for i in range(parts):
        p = probabilities[i * count // parts : (i + 1) * count // parts].double().clamp_min(1e-9)
        scores.append(float((p * (p.log() - p.mean(dim=0).log())).sum(dim=1).mean().exp()))
    return float(np.mean(scores))
