"""How long the parts of a step take on this rank, without a wait for its device.

On a GPU events in its stream measure, which are read a step later. A collective operation counts as communication, and
is taken out of the part whose stream waits for it. Of one in another stream, parallel to a backward pass, only what the
pass waits for at its end stays in the backward's time.
"""

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

PARTS = ("data", "forward", "backward", "communication")
COLLECTIVES = (
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_base",
    "all_gather_coalesced",
)


@dataclass
class _Span:
    """A part's beginning and end: seconds, or events of a GPU's stream."""

    part: str
    begin: Any
    stream: int
    end: Any = None
    inner: list["_Span"] = field(default_factory=list)

    def seconds(self) -> float:
        if isinstance(self.begin, float):
            return float(self.end - self.begin)
        self.end.synchronize()  # a step ago: it is over
        return float(self.begin.elapsed_time(self.end)) / 1000

    def own_seconds(self) -> float:
        """Without what its stream spent in spans inside it."""
        return self.seconds() - sum(span.seconds() for span in self.inner if span.stream == self.stream)


class StepTimes:
    """Call it with a part's name for a `with`; `end_step` after each step. Spans inside one another are those of the
    communication within a forward or backward pass."""

    def __init__(self, device: torch.device) -> None:
        self.active = False
        self.on_gpu = device.type == "cuda" and torch.cuda.is_available()
        self.open: list[_Span] = []
        self.spans: list[_Span] = []  # of the current step
        self.former: list[_Span] = []  # of the step before
        self.steps: list[dict[str, float]] = []

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        if not self.active:
            yield
            return
        span = _Span(part, self._now(), torch.cuda.current_stream().cuda_stream if self.on_gpu else 0)
        if self.open:
            self.open[-1].inner.append(span)
        self.open.append(span)
        try:
            yield
        finally:
            span.end = self._now()
            self.open.pop()
            self.spans.append(span)

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(self) -> None:
        """Measures nothing more, and forgets what it has."""
        self.active, self.spans, self.former, self.steps = False, [], [], []

    def end_step(self) -> None:
        if self.active:
            self._read_former()
            self.former, self.spans = self.spans, []

    def _read_former(self) -> None:
        if not self.former:
            return
        row = dict.fromkeys(PARTS, 0.0)
        for span in self.former:
            row[span.part] += span.own_seconds()
        self.steps.append(row)
        self.former = []

    def medians(self) -> list[float]:
        """Seconds per step in each part: the median over the steps since the last call, the current one left out. Empty
        without such a step."""
        if self.steps:
            steps, self.steps = self.steps, []
            return [statistics.median(step[part] for step in steps) for part in PARTS]
        return []

    def time_collectives(self, backend: object) -> None:
        """Measures the collective operations of this object, by which DeepSpeed calls torch's: its own log of them
        waits for the device after each."""
        for name in COLLECTIVES:
            if call := getattr(backend, name, None):
                setattr(backend, name, self._timed(call))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self("communication"):
                work = call(*arguments, **named)
            return _TimedWork(work, self) if hasattr(work, "wait") else work

        return timed


class _TimedWork:
    """An operation in progress, whose wait counts as communication."""

    def __init__(self, work: Any, times: StepTimes) -> None:
        self.work, self.times = work, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self.work, name)

    def wait(self, *arguments: Any, **named: Any) -> Any:
        with self.times("communication"):
            return self.work.wait(*arguments, **named)
