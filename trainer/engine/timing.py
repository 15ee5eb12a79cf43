"""Times of several ways to do the same, which take turns so that a busy machine slows all of them alike."""

import functools
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


def replayed(
    variants: dict[str, Callable[[], None]], rounds: int, inner: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds a call of each variant, all captured by `captured` with `inner` calls: by the GPU's own clock, so that
    what Python takes to launch them does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, replay in variants.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            replay()  # what the variant before it left in a cache is gone
            begin.record()
            replay()
            end.record()
            end.synchronize()
            seconds[name].append(begin.elapsed_time(end) / 1000 / inner)
    return seconds


def captured(make: Callable[[], Callable[[], None]], inner: int) -> Callable[[], None]:
    """Replays `inner` calls of what `make` makes as one CUDA graph. It is made, compiled and captured on one stream:
    autograd computes a backward where its forward was.

    Raises RuntimeError where a call does what a graph cannot hold; the stream is then the one that it was before.
    """
    before, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(before)
    with torch.cuda.stream(side):
        call = make()
        for _ in range(3):
            call()
    before.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=side):
            for _ in range(inner):
                call()
    finally:
        torch.cuda.set_stream(before)  # a capture that fails leaves its own
    return functools.partial(_replay, graph, call)


def _replay(graph: torch.cuda.CUDAGraph, held: Callable[[], None]) -> None:
    """`held` keeps the tensors that the graph reads."""
    graph.replay()
