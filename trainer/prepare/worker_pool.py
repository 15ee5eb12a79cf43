"""Processes that work on one task at a time and send what it gives piece by piece, as fast as it is taken from them.

A pipe holds little: who is not read from waits, so that decoding runs no further ahead than one piece a process.
"""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import torch

Task = TypeVar("Task")

# A process that imports once, and from which the others fork: a dozen of them start in no time and share that memory.
# It runs no thread of torch, as the main process does, a copy of which could hang.
_CONTEXT = get_context("forkserver")
# Signals by which code that decodes a damaged file ends its process. SIGKILL comes from outside: memory ran out.
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGKILL)
TICK = 0.5  # seconds after which `run` says that nothing has come
GRACE = 10.0  # seconds for a process to end: one that waits for a dead file system does not


@dataclass(frozen=True)
class TaskOutput(Generic[Task]):
    """Something that a task gave."""

    task: Task
    value: Any


@dataclass(frozen=True)
class TaskEnd(Generic[Task]):
    """A task has given everything; or it ended its process by a signal, or was given up, and gives nothing more."""

    task: Task
    crash: str = ""  # the signal's name
    stuck: bool = False  # it gave nothing for the longest time that it may take


@dataclass(frozen=True)
class _WorkerFailure:
    error: Exception


class _Worker(Generic[Task]):
    def __init__(self, function: Callable[[Task], Iterator[Any]]) -> None:
        self.pipe, theirs = _CONTEXT.Pipe()
        self.process: BaseProcess = _CONTEXT.Process(target=_serve, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()
        self.task: Task | None = None
        self.since = 0.0  # when it last gave something, or was given its task

    def give(self, task: Task) -> None:
        self.task, self.since = task, time.monotonic()
        # One that is dead already is found where its answer is waited for.
        with suppress(BrokenPipeError):
            self.pipe.send(task)

    def close(self) -> None:
        self.process.kill()
        self.process.join(GRACE)
        self.pipe.close()


class WorkerPool(Generic[Task]):
    """A context manager around `count` processes that call `function` on each task and send what it yields. A task that
    gives nothing for `limit` seconds is given up."""

    def __init__(self, function: Callable[[Task], Iterator[Any]], count: int, limit: float = math.inf) -> None:
        if count < 1:
            raise ValueError(f"workers is {count}, must be at least 1")
        self._function = function
        self._count, self._limit = count, limit
        self._workers: list[_Worker[Task]] = []

    def __enter__(self) -> Self:
        _CONTEXT.set_forkserver_preload([self._function.__module__])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.close()

    def run(self, next_task: Callable[[], Task | None]) -> Iterator[TaskOutput[Task] | TaskEnd[Task] | None]:
        """The pieces and ends of tasks as they come, those of one task in its order. None where nothing came for a
        moment.

        A task is asked for when a process is free; None means that there is none now. The iterator ends when no process
        has one. An exception in a process is raised here.

        Raises:
            ChildProcessError: a process ended without a task's doing.
        """
        while True:
            while (worker := self._free()) and (task := next_task()) is not None:
                worker.give(task)
            busy = {worker.pipe: worker for worker in self._workers if worker.task is not None}
            if not busy:
                return
            ready = wait(list(busy), TICK)
            for pipe in ready:
                yield self._received(busy.pop(pipe))  # type: ignore[call-overload]
            if not ready:
                yield None
            for worker in busy.values():
                if time.monotonic() - worker.since > self._limit:
                    yield self._given_up(worker)

    def _free(self) -> _Worker[Task] | None:
        """A process without a task; new ones are started up to their number."""
        free = next((worker for worker in self._workers if worker.task is None), None)
        if free is None and len(self._workers) < self._count:
            free = _Worker(self._function)
            self._workers.append(free)
        return free

    def _received(self, worker: _Worker[Task]) -> TaskOutput[Task] | TaskEnd[Task]:
        task = worker.task
        assert task is not None
        try:
            value = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            return self._lost(worker, task)
        worker.since = time.monotonic()
        if isinstance(value, _WorkerFailure):
            raise value.error
        if value is None:
            worker.task = None
            return TaskEnd(task)
        return TaskOutput(task, value)

    def _lost(self, worker: _Worker[Task], task: Task) -> TaskEnd[Task]:
        worker.process.join()
        code = worker.process.exitcode or 0
        worker.close()
        if -code not in _CRASHES:
            how = signal.Signals(-code).name if code < 0 else f"code {code}"
            raise ChildProcessError(f"a worker process was ended ({how}) at {task}")
        self._workers.remove(worker)
        return TaskEnd(task, signal.Signals(-code).name)

    def _given_up(self, worker: _Worker[Task]) -> TaskEnd[Task]:
        task = worker.task
        assert task is not None
        worker.close()
        self._workers.remove(worker)
        return TaskEnd(task, stuck=True)


def _serve(pipe: Connection, function: Callable[[Task], Iterator[Any]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the main process ends them
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    Thread(target=_exit_with_parent, daemon=True).start()
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        answer = None
        try:
            for value in function(task):
                pipe.send(value)
        except Exception as error:
            answer = _WorkerFailure(error)
        pipe.send(answer)


def _exit_with_parent() -> None:
    """A parent that is killed would leave its workers waiting for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
