"""CUDA graphs of whole samplings. For one clip the host takes longer to launch the kernels of four steps than a GPU to
run them; a graph is one launch.

Tensors of a request go in by name: the conditions of the network's `encode`, the noise of all steps, and what is given.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...models.audiox import SamplingConfig
from ..engine.timing import capture_graph

MAX_GRAPHS = 4  # each keeps its inputs and outputs; they share the memory in between


@dataclass(frozen=True)
class SamplingConstants:
    """What all requests of a sampling have in common, or what negative texts put in its place."""

    steps: Sequence[Any]  # the network's features of each noise level
    null: tuple[Tensor, Tensor] | None  # H_c (1 or B, N, W) and lengths without any condition; None without guidance


Prepare = Callable[[SamplingConfig], SamplingConstants]
Compute = Callable[[SamplingConfig, SamplingConstants, Mapping[str, Tensor]], tuple[Tensor, ...]]
Key = tuple[SamplingConfig, tuple[tuple[str, torch.Size, torch.dtype], ...]]


@dataclass(frozen=True)
class _Graph:
    constants: SamplingConstants  # read at every replay, so they have to stay where they are
    inputs: dict[str, Tensor]
    outputs: list[Tensor]
    replay: Callable[[], None]


class SamplingGraphs:
    """Calls `compute`. The second call with one sampling and the same shapes is captured, and later ones replay it. The
    first is not: a capture costs two further calls, which a single sound would not win back. Only CUDA has graphs."""

    def __init__(self, prepare: Prepare, compute: Compute, enabled: bool = True) -> None:
        self.prepare, self.compute = prepare, compute
        self.seen: set[Key] = set()
        self.graphs: dict[Key, _Graph] = {}  # the last used at the end
        self.pool: Any = None
        self.failed = not enabled

    def __call__(self, sampling: SamplingConfig, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """What `compute` returns; the next call may overwrite it."""
        key = sampling, tuple((name, x.shape, x.dtype) for name, x in tensors.items())
        graph = None
        if key in self.seen and not self.failed:
            graph = self.graphs.pop(key, None) or self._capture(sampling, tensors)
        self.seen.add(key)
        if graph is None:
            return self.compute(sampling, self.prepare(sampling), tensors)
        self.graphs[key] = graph
        if len(self.graphs) > MAX_GRAPHS:
            del self.graphs[next(iter(self.graphs))]
        for name, x in tensors.items():
            graph.inputs[name].copy_(x)
        graph.replay()
        return tuple(graph.outputs)

    def _capture(self, sampling: SamplingConfig, tensors: Mapping[str, Tensor]) -> _Graph | None:
        constants, inputs = self.prepare(sampling), {name: x.clone() for name, x in tensors.items()}
        outputs: list[Tensor] = []

        def call() -> None:
            outputs[:] = self.compute(sampling, constants, inputs)

        try:
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            replay = capture_graph(lambda: call, 1, warmups=1, pool=self.pool)
        except RuntimeError as error:  # it waits for the host somewhere, or memory is short
            self.failed = True
            print(f"sampling without a CUDA graph: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
            return None
        return _Graph(constants, inputs, outputs, replay)
