"""Learning rates."""

from .config import ScheduleConfig


def learning_rate(config: ScheduleConfig, base: float, step: int, steps: int) -> float:
    """The rate of update `step` (from 0) of `steps` (section VI-A, InverseLR; `cooldown` is ours)."""
    ramp = 1 - config.warmup ** (step + 1)
    rate = ramp * max(config.final, base * (1 + step / config.inv_gamma) ** -config.power)
    start = steps * (1 - config.cooldown)
    return rate * (steps - step) / (steps - start) if step > start else rate
