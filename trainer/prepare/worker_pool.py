"""A pool of processes that work on one task at a time and send its outputs one by one.

A pipe holds little: a worker blocks until its pipe is read, so each one is at most one output ahead.
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

# Workers fork from a server that has done the imports: they start quickly and share its memory. Unlike the main process
# it runs no threads of torch, which could hang after a fork.
_CONTEXT = get_context("forkserver")
# Signals that end a process while it decodes a damaged file. SIGKILL usually means that memory ran out.
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGKILL)
TICK = 0.5  # seconds without an output after which `run` yields None
GRACE = 10.0  # seconds to wait for a killed process; one that hangs in a dead file system does not end


@dataclass(frozen=True)
class TaskOutput(Generic[Task]):
    """One output of a task."""

    task: Task
    value: Any


@dataclass(frozen=True)
class TaskEnd(Generic[Task]):
    """The end of a task: it is complete, or a signal killed its process, or it was given up."""

    task: Task
    crash: str = ""  # the signal's name
    stuck: bool = False  # no output within the time limit


@dataclass(frozen=True)
class _WorkerFailure:
    error: Exception


@dataclass(frozen=True)
class _Ready:
    """A process has imported what it needs. Its time limit starts here, not while a busy machine still imports."""


class _Worker(Generic[Task]):
    def __init__(self, function: Callable[[Task], Iterator[Any]]) -> None:
        self.pipe, theirs = _CONTEXT.Pipe()
        self.process: BaseProcess = _CONTEXT.Process(target=_serve, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()
        self.task: Task | None = None
        self.ready = False
        self.since = 0.0  # its last output, or the start of its task

    def give(self, task: Task) -> None:
        self.task, self.since = task, time.monotonic()
        # A dead process is noticed when its output is read.
        with suppress(BrokenPipeError):
            self.pipe.send(task)

    def close(self) -> None:
        self.process.kill()
        self.process.join(GRACE)
        self.pipe.close()


class WorkerPool(Generic[Task]):
    """A context manager with `count` processes that call `function` on each task and send what it yields. A task
    without an output for `limit` seconds is given up."""

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
        """Yield outputs and ends of tasks as they come, in order for each task; None if nothing came for a moment.

        `next_task` is called when a process is free; None means that there is no task now. The iterator ends when no
        process has a task. An exception in a process is raised here.

        Raises:
            ChildProcessError: a process ended for a reason other than its task.
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
                if worker.ready and time.monotonic() - worker.since > self._limit:
                    yield self._given_up(worker)

    def _free(self) -> _Worker[Task] | None:
        """A process without a task; starts one if there are fewer than `count`."""
        free = next((worker for worker in self._workers if worker.task is None), None)
        if free is None and len(self._workers) < self._count:
            free = _Worker(self._function)
            self._workers.append(free)
        return free

    def _received(self, worker: _Worker[Task]) -> TaskOutput[Task] | TaskEnd[Task] | None:
        task = worker.task
        assert task is not None
        try:
            value = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            return self._lost(worker, task)
        worker.since = time.monotonic()
        if isinstance(value, _WorkerFailure):
            raise value.error
        if isinstance(value, _Ready):
            worker.ready = True
            return None
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
            raise ChildProcessError(f"a worker process was killed ({how}) at {task}")
        self._workers.remove(worker)
        return TaskEnd(task, signal.Signals(-code).name)

    def _given_up(self, worker: _Worker[Task]) -> TaskEnd[Task]:
        task = worker.task
        assert task is not None
        worker.close()
        self._workers.remove(worker)
        return TaskEnd(task, stuck=True)


def _serve(pipe: Connection, function: Callable[[Task], Iterator[Any]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the main process ends workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    Thread(target=_exit_with_parent, daemon=True).start()
    pipe.send(_Ready())
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        last = None
        try:
            for value in function(task):
                pipe.send(value)
        except Exception as error:
            last = _WorkerFailure(error)
        pipe.send(last)


def _exit_with_parent() -> None:
    """Exit when the parent does; workers of a killed parent would wait forever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
