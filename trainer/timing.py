"""Times of several ways to do the same, which take turns so that a busy machine slows all of them alike."""

import time
from collections.abc import Callable

import torch


def interleaved(
    variants: dict[str, Callable[[], None]],
    rounds: int,
    inner: int,
    warmup: int,
    device: torch.device | None = None,
) -> dict[str, list[float]]:
    """Seconds a call of each variant, `rounds` values each of `inner` calls in a row, after `warmup` calls."""
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    for call in variants.values():
        for _ in range(warmup):
            call()
    if on_gpu:
        torch.cuda.synchronize()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            begin = time.perf_counter()
            for _ in range(inner):
                call()
            if on_gpu:
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - begin) / inner)
    return seconds
