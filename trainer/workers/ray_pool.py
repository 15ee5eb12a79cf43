"""A pool of Ray actors, wherever the cluster has room for them. The only file that asks Ray to do work.

An actor's outputs are a stream; it is at most one output ahead of its reader, so that the object store holds little.
An actor that is lost, with its node or alone, is replaced as soon as there is room; nodes may come and go.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, Self

import ray
from ray.exceptions import RayError, RayTaskError

from .pool import Task, TaskEnd, TaskOutput

TICK = 0.5  # seconds without an output after which `run` yields None
LOOK = 5.0  # seconds between two looks at the size of the cluster
PATIENCE = 60.0  # seconds without any actor after which a line says so
AHEAD = 1  # outputs; four clips with video are 180 MB of the object store
FALSE_STARTS = 10  # actors in a row that do not come up
UNITS = 10_000  # Ray divides a GPU into so many


def gpu_share() -> float:
    """The part of a GPU for each core, such that every core of the nodes with GPUs can have it; 0 without a GPU."""
    shares = [node["GPU"] / max(node.get("CPU", 0.0), 1.0) for node in _nodes() if node.get("GPU")]
    return math.floor(min([1.0, *shares]) * UNITS) / UNITS if shares else 0.0


def resources(kind: str, with_gpu: bool = False) -> int:
    """How many of a resource ("CPU", "GPU") the cluster has, or its nodes that have a GPU, be they free or not."""
    return int(sum(node.get(kind, 0.0) for node in _nodes() if node.get("GPU") or not with_gpu))


def _nodes() -> list[dict[str, float]]:
    """The resources of each node that is there."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class _Maker:
    def __init__(self, function: Callable[[Any], Iterator[Any]]) -> None:
        self._function = function

    def ready(self) -> None:
        """Nothing: who answers is there."""

    @ray.method(num_returns="streaming", _generator_backpressure_num_objects=AHEAD)
    def make(self, task: Any) -> Iterator[Any]:
        yield from self._function(task)


_REMOTE: Any = ray.remote(max_restarts=0, max_task_retries=0)(_Maker)


class _Actor(Generic[Task]):
    def __init__(self, handle: Any) -> None:
        self.handle, self.task, self.waiting = handle, None, handle.ready.remote()

    task: Task | None
    waiting: Any  # reference of its readiness, or the stream of its task; None if it is free

    def give(self, task: Task) -> None:
        self.task = task
        self.waiting = self.handle.make.remote(task)


class RayPool(Generic[Task]):
    """A context manager with `count()` actors, each with these resources (`num_cpus`, `num_gpus`), that call
    `function` on each task and send what it yields."""

    def __init__(
        self, function: Callable[[Task], Iterator[Any]], count: Callable[[], int], resources: dict[str, float]
    ) -> None:
        self._function, self._count = function, count
        self._options = {**resources, "scheduling_strategy": "SPREAD"}
        self._actors: list[_Actor[Task]] = []
        self._last_look, self._last_ready, self._false_starts = -LOOK, time.monotonic(), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            ray.kill(actor.handle)

    def run(self, next_task: Callable[[], Task | None]) -> Iterator[TaskOutput[Task] | TaskEnd[Task] | None]:
        """As `Pool.run`. A task may wait here until there is an actor for it.

        Raises:
            OSError: the cluster starts no actor.
        """
        waiting: Task | None = None  # a task for the next actor that is free
        while True:
            self._fill()
            for actor in [actor for actor in self._actors if actor.waiting is None]:
                waiting = next_task() if waiting is None else waiting
                if waiting is None:
                    break
                actor.give(waiting)
                waiting = None
            busy = any(actor.task is not None for actor in self._actors)
            if not busy and waiting is None and (waiting := next_task()) is None:
                return
            streams = {actor.waiting: actor for actor in self._actors if actor.waiting is not None}
            self._complain(busy)
            ready = ray.wait(list(streams), timeout=TICK, fetch_local=False)[0] if streams else []
            if not streams:
                time.sleep(TICK)
            yield from [self._received(streams[stream]) for stream in ready] or [None]

    def _fill(self) -> None:
        """Start actors that are missing: lost ones, and those of new nodes."""
        if time.monotonic() - self._last_look >= LOOK:
            self._last_look, wanted = time.monotonic(), self._count()
            for _ in range(len(self._actors), wanted):
                self._actors.append(_Actor(_REMOTE.options(**self._options).remote(self._function)))

    def _complain(self, busy: bool) -> None:
        if busy:
            self._last_ready = time.monotonic()
        elif time.monotonic() - self._last_ready > PATIENCE:
            self._last_ready = time.monotonic()
            print(f"the cluster has no room for a worker with {self._options} yet", file=sys.stderr, flush=True)

    def _received(self, actor: _Actor[Task]) -> TaskOutput[Task] | TaskEnd[Task] | None:
        task = actor.task
        try:
            if task is None:
                ray.get(actor.waiting)
                actor.waiting, self._false_starts = None, 0
                return None
            reference = next(actor.waiting, None)
            if reference is not None:
                return TaskOutput(task, ray.get(reference))
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except RayError as error:
            return self._lost(actor, error)
        actor.task = actor.waiting = None
        return TaskEnd(task)

    def _lost(self, actor: _Actor[Task], error: RayError) -> TaskEnd[Task] | None:
        self._actors.remove(actor)
        self._last_look = -LOOK  # for another one
        why = str(error).strip().splitlines()[0]
        if actor.task is None:
            self._false_starts += 1
            if self._false_starts >= FALSE_STARTS:
                raise OSError(f"Ray has started {FALSE_STARTS} workers in a row that were lost at once: {error}")
            return None
        return TaskEnd(actor.task, crash=why, lost=True)
