"""Timing of several ways to do the same. They take turns, so that a busy machine slows all of them alike."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

K = TypeVar("K")


def time_interleaved(
    variants: Mapping[K, Callable[[], object]],
    rounds: int,
    inner: int,
    warmup: int,
    device: torch.device | None = None,
) -> dict[K, list[float]]:
    """Seconds per call of each variant: `rounds` values, each of `inner` calls in a row, after `warmup` calls."""
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    for call in variants.values():
        for _ in range(warmup):
            call()
    if on_gpu:
        torch.cuda.synchronize()
    seconds: dict[K, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            begin = time.perf_counter()
            for _ in range(inner):
                call()
            if on_gpu:
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - begin) / inner)
    return seconds


def time_graphs(
    variants: Mapping[K, Callable[[], object]], rounds: int, inner: int, device: torch.device
) -> dict[K, list[float]]:
    """Seconds per call of each variant, captured by `capture_graph` with `inner` calls. The GPU's own clock measures,
    so that the time Python takes to launch them does not count."""
    seconds: dict[K, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, replay in variants.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            replay()  # so that the cache holds nothing of the variant before
            begin.record()
            replay()
            end.record()
            end.synchronize()
            seconds[name].append(begin.elapsed_time(end) / 1000 / inner)
    return seconds


def capture_graph(
    make: Callable[[], Callable[[], object]], inner: int, warmups: int = 3, pool: Any = None
) -> Callable[[], None]:
    """A replay of `inner` calls of what `make` returns, as one CUDA graph. It is made, compiled and captured on one
    stream, since autograd computes a backward on the stream of its forward. Graphs with the same `pool` share memory:
    the replay of one may overwrite the results of another.

    Raises RuntimeError if a call does what a graph cannot hold; the current stream is then the same as before.
    """
    before, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(before)
    with torch.cuda.stream(side):
        call = make()
        for _ in range(warmups):
            call()
    before.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=side):
            for _ in range(inner):
                call()
    finally:
        torch.cuda.set_stream(before)  # a failed capture leaves its own
    return functools.partial(_replay, graph, call)


def _replay(graph: torch.cuda.CUDAGraph, call: Callable[[], object]) -> None:
    """`call` keeps the tensors alive that the graph reads."""
    graph.replay()
