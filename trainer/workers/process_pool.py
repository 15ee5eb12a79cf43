"""A pool of processes of this machine, each of which works on one task at a time and sends its outputs one by one.

A pipe holds little: a worker blocks until its pipe is read, so each one is at most one output ahead.
"""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Generic, Literal, Self

from .pool import Task, TaskEnd, TaskOutput

# Makers fork from a server that has done the imports: they start quickly and share its memory. Unlike the main process
# it runs no threads of torch, which could hang after a fork. A maker's own processes would each bring up such a server,
# so those that import little are spawned instead.
Method = Literal["forkserver", "spawn"]
# Signals that end a process while it decodes a damaged file. SIGKILL usually means that memory ran out.
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGKILL)
TICK = 0.5  # seconds without an output after which `run` yields None
GRACE = 10.0  # seconds to wait for a killed process; one that hangs in a dead file system does not end


@dataclass(frozen=True)
class _WorkerFailure:
    error: Exception


@dataclass(frozen=True)
class _Ready:
    """A process has imported what it needs. Its time limit starts here, not while a busy machine still imports."""


class _Worker(Generic[Task]):
    def __init__(self, slot: int, function: Callable[[Task], Iterator[Any]], method: Method) -> None:
        context: Any = get_context(method)
        self.slot = slot
        self.pipe, theirs = context.Pipe()
        # No daemon, because it may have processes of its own.
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, function, dict(os.environ)))
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


class ProcessPool(Generic[Task]):
    """A context manager with a process for each of `functions`, which calls it on each task and sends what it yields. A
    task without an output for `limit` seconds is given up."""

    def __init__(
        self,
        functions: Sequence[Callable[[Task], Iterator[Any]]],
        limit: float = math.inf,
        method: Method = "forkserver",
    ) -> None:
        if not functions:
            raise ValueError("workers is 0, must be at least 1")
        self._functions, self._limit, self._method = functions, limit, method
        self._workers: list[_Worker[Task]] = []

    def __enter__(self) -> Self:
        if self._method == "forkserver":
            get_context("forkserver").set_forkserver_preload([self._functions[0].__module__])
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()

    def run(self, next_task: Callable[[], Task | None]) -> Iterator[TaskOutput[Task] | TaskEnd[Task] | None]:
        """As `Pool.run`.

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
                yield self._received(busy.pop(pipe))
            if not ready:
                yield None
            for worker in busy.values():
                if worker.ready and not worker.pipe.poll() and time.monotonic() - worker.since > self._limit:
                    yield self._given_up(worker)

    def _free(self) -> _Worker[Task] | None:
        """A process without a task; starts one if one is missing."""
        free = next((worker for worker in self._workers if worker.task is None), None)
        missing = set(range(len(self._functions))) - {worker.slot for worker in self._workers}
        if free is None and missing:
            free = _Worker(slot := min(missing), self._functions[slot], self._method)
            self._workers.append(free)
        return free

    def _received(self, worker: _Worker[Task]) -> TaskOutput[Task] | TaskEnd[Task] | None:
        task = worker.task
        assert task is not None
        try:
            value = worker.pipe.recv()
        except (EOFError, OSError):  # an OSError in the middle of a message
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


def _serve(pipe: Connection, function: Callable[[Task], Iterator[Any]], environment: dict[str, str]) -> None:
    os.environ |= environment  # the fork server has that of its start
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the main process ends workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
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
