"""Noise levels: an interval of them, in which guidance acts or levels are drawn, and their shift. It needs no torch."""

from collections.abc import Sequence


def check_interval(name: str, levels: Sequence[float]) -> None:
    """Raises ValueError if these are not a lowest and a highest noise level."""
    if len(levels) != 2 or not 0 <= levels[0] < levels[1] <= 1:
        raise ValueError(f"{name}: {list(levels)} must be two levels, 0 <= lowest < highest <= 1")


def parse_interval(text: str) -> tuple[float, float]:
    """The noise levels of "LOWEST-HIGHEST". Raises ValueError."""
    low, _, high = text.partition("-")
    try:
        levels = float(low), float(high)
        check_interval("interval", levels)
    except ValueError:
        raise ValueError(f"{text!r} is not LOWEST-HIGHEST of noise levels from 0 to 1, as 0.9-1") from None
    return levels


def shifted(t: float, shift: float) -> float:
    """A level with more noise for a shift above 1. The inverse is the shift by 1 / shift."""
    return t if t in (0, 1) else shift * t / (1 + (shift - 1) * t)
