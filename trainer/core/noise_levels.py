"""How noise levels are drawn."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from ...models.interval import check_interval, shifted
from ...models.strict import PositiveFloat

SMALLEST_SHARE = 1e-12  # of a distribution, below which nothing is drawn


@dataclass(frozen=True)
class NoiseLevels:
    """A distribution of noise levels t in [0, 1], shifted and cut to a range."""

    range: tuple[float, ...] = (0.02, 0.98)  # lowest and highest level, after the shift
    distribution: Literal["uniform", "logit_normal", "log_normal"] = "uniform"  # the normal ones: of logit t, of log t
    mean: float = 0.0  # of the normal
    std: PositiveFloat = 1.0  # of the normal
    shift: PositiveFloat = 1.0  # above 1 draws more noise: t becomes shift·t / (1 + (shift - 1)·t)

    def __post_init__(self) -> None:
        check_interval("range", self.range)

    def from_uniform(self, uniform: float) -> float:
        """The level of a draw from [0, 1), by the inverse of the distribution within the range."""
        low, high = (shifted(t, 1 / self.shift) for t in self.range)
        if self.distribution == "uniform":
            return shifted(low + (high - low) * uniform, self.shift)
        normal = NormalDist(self.mean, self.std)
        logit = self.distribution == "logit_normal"
        share_low, share_high = (normal.cdf(_to_normal(t, logit)) for t in (low, high))
        share = share_low + (share_high - share_low) * uniform
        x = normal.inv_cdf(min(max(share, SMALLEST_SHARE), 1 - SMALLEST_SHARE))
        t = 1 / (1 + math.exp(-x)) if logit else math.exp(x)
        return shifted(min(max(t, low), high), self.shift)


def _to_normal(t: float, logit: bool) -> float:
    if t == 0 or (logit and t == 1):
        return math.inf if t else -math.inf
    return math.log(t / (1 - t)) if logit else math.log(t)
