"""The learning-rate schedule."""

from ..core.config import ScheduleConfig


def learning_rate(config: ScheduleConfig, base: float, step: int, steps: int) -> float:
    """The learning rate of update `step` (from 0) of `steps`: InverseLR (section VI-A), and our `cooldown`."""
    ramp = 1 - config.warmup ** (step + 1)
    rate = ramp * max(config.final_lr, base * (1 + step / config.inv_gamma) ** -config.power)
    start = steps * (1 - config.cooldown)
    return rate * (steps - step) / (steps - start) if step > start else rate
