"""The decoders of a maker, and what becomes of the lines that they are given.

A decoder is a process of the maker, or a process inside an actor of Ray on any node. So a file that brings its decoder
down costs a process, never the maker or the actor.
"""

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, Self, TypeVar

from ..manifest.manifest import ManifestEntry
from ..media.source import Reason
from ..workers.machine_lock import MachineLock
from ..workers.pool import Pool, TaskEnd, TaskOutput
from ..workers.process_pool import ProcessPool

PAUSE = 0.2  # seconds between two looks at the lock
LOSSES = 5  # decoders that a line may cost by being lost with their node


class LineTask(Protocol):
    """A dataclass: a line of a manifest, what to do with it, and whether `alone` with its machine's memory."""

    @property
    def entry(self) -> ManifestEntry: ...

    @property
    def alone(self) -> bool: ...


Line = TypeVar("Line", bound=LineTask)
Decode = Callable[[Line], Iterator[Any]]


class _Waiting:
    """A sign of life of a decoder that waits for another one to have the machine."""


class _Decoder(Generic[Line]):
    """In a process: decodes next to others, or a file that was killed for lack of memory alone on its machine."""

    def __init__(self, decode: Decode[Line]) -> None:
        self._decode = decode
        self._lock: MachineLock | None = None

    def __call__(self, task: Line) -> Iterator[Any]:
        self._lock = lock = self._lock or MachineLock()
        try:
            while not (lock.be_alone() if task.alone else lock.share()):
                yield _Waiting()
                time.sleep(PAUSE)
            yield from self._decode(task)
        finally:
            lock.leave()


class ProcessDecoders(ProcessPool[Line]):
    """`count` processes of this machine. A file without an output for `limit` seconds is given up."""

    def __init__(self, decode: Decode[Line], count: int, limit: float) -> None:
        super().__init__([_Decoder(decode)] * count, limit, "spawn")


class _ActorDecoder(Generic[Line]):
    """In an actor: the messages of its process are its outputs."""

    def __init__(self, decode: Decode[Line], limit: float) -> None:
        self._decode, self._limit = decode, limit
        self._pool: ProcessDecoders[Line] | None = None

    def __call__(self, task: Line) -> Iterator[TaskOutput[Line] | TaskEnd[Line]]:
        if self._pool is None:
            self._pool = ProcessDecoders(self._decode, 1, self._limit).__enter__()
        tasks = deque([task])
        for message in self._pool.run(lambda: tasks.popleft() if tasks else None):
            if message is not None:
                yield message


class ActorDecoders(Generic[Line]):
    """`count` actors, each with a CPU core of any node of the cluster."""

    def __init__(self, decode: Decode[Line], count: int, limit: float) -> None:
        from ..workers.ray_pool import RayPool

        self._pool: Any = RayPool(_ActorDecoder(decode, limit), lambda: count, {"num_cpus": 1})

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.__exit__()

    def run(self, next_task: Callable[[], Line | None]) -> Iterator[TaskOutput[Line] | TaskEnd[Line] | None]:
        """As `Pool.run`."""
        for message in self._pool.run(next_task):
            if isinstance(message, TaskOutput):
                yield message.value
            elif message is None or message.lost:
                yield message


@dataclass(frozen=True)
class LineOutput:
    """The next output of a line."""

    entry: ManifestEntry
    value: Any


@dataclass(frozen=True)
class LineRestart:
    """The line starts again: its earlier outputs count for nothing."""

    entry: ManifestEntry


@dataclass(frozen=True)
class LineEnd:
    """The line has ended."""

    entry: ManifestEntry
    fault: tuple[str, str] | None = None  # reason and detail, if what happened to its process leaves it out


LineEvent = LineOutput | LineRestart | LineEnd


def decode_lines(
    tasks: Iterable[Line], decoders: Pool[Line], has_room: Callable[[], bool] = lambda: True
) -> Iterator[LineEvent]:
    """Yield what comes of each line, in order for each. A new line is begun only while `has_room` says so."""
    left, again, running = deque(tasks), deque[Line](), set[int]()
    kills, losses = set[int](), dict[int, int]()

    def next_task() -> Line | None:
        waiting = again or (left if has_room() else deque())
        if not waiting:
            return None
        task = waiting.popleft()
        running.add(task.entry.line)
        return task

    for message in decoders.run(next_task):
        if message is None or message.task.entry.line not in running:
            continue  # of an actor that was lost after the end of its line
        entry, line = message.task.entry, message.task.entry.line
        if isinstance(message, TaskOutput):
            if not isinstance(message.value, _Waiting):
                yield LineOutput(entry, message.value)
            continue
        running.remove(line)
        killed = message.crash == signal.SIGKILL.name
        losses[line] = losses.get(line, 0) + message.lost
        if (killed and line not in kills) or (message.lost and losses[line] < LOSSES):
            if killed:
                kills.add(line)
                _warn(message.task)
            again.append(_with(message.task, alone=message.task.alone or killed))
            yield LineRestart(entry)
        else:
            yield LineEnd(entry, _process_fault(message))


def _with(task: Line, alone: bool) -> Line:
    return replace(task, alone=alone)  # type: ignore[type-var]


def _warn(task: LineTask) -> None:
    warning = f"the worker process of {task} was killed, usually for lack of memory: it is tried again alone"
    print(f"{warning}; fewer --workers may be faster", file=sys.stderr, flush=True)


def _process_fault(end: TaskEnd[Any]) -> tuple[str, str] | None:
    """Reason and detail if a file is left out because of what happened to its process."""
    if end.stuck:
        return Reason.STUCK.value, "gave no clip within the time limit (--limit)"
    if end.crash == signal.SIGKILL.name:
        return Reason.UNDECODABLE.value, f"decoding it killed its process twice, the second time alone ({end.crash})"
    return (Reason.UNDECODABLE.value, f"decoding it killed the process ({end.crash})") if end.crash else None
