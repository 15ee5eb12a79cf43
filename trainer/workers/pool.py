"""What every kind of maker looks like: a pool that works on tasks and yields what comes of them.

`ProcessPool` has processes of this machine, `RayPool` actors of a cluster. A task may yield any number of outputs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

Task = TypeVar("Task")


@dataclass(frozen=True)
class TaskOutput(Generic[Task]):
    """One output of a task."""

    task: Task
    value: Any


@dataclass(frozen=True)
class TaskEnd(Generic[Task]):
    """The end of a task: it is complete, or its process or actor was lost, or it was given up."""

    task: Task
    crash: str = ""  # the name of the signal that killed its process, or what Ray says of its actor
    stuck: bool = False  # no output within the time limit
    lost: bool = False  # with its actor, or the whole node: the task may not be at fault


class Pool(Protocol[Task]):
    """A context manager; what it has started ends with it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def run(self, next_task: Callable[[], Task | None]) -> Iterator[TaskOutput[Task] | TaskEnd[Task] | None]:
        """Yield outputs and ends of tasks as they come, in order for each task; None if nothing came for a moment.

        `next_task` is called when there is room; None means that there is no task now. The iterator ends when nobody
        has a task. An exception of a task is raised here.
        """
        ...
