"""Hand out tasks to makers, and take what comes of them. Makers may be lost; the driver gives their tasks out again."""

import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

from .pool import Pool, Task, TaskOutput

LOSSES = 5  # makers that a task may cost


def drive(pool: Pool[Task], tasks: Iterator[Task], check: Callable[[], None]) -> Iterator[tuple[Task, Any]]:
    """Yield each task with the one output that its maker gives, as they come. A task whose maker is lost starts again.
    `check` is called a few times per second and may raise.

    Raises:
        ChildProcessError: a task has cost LOSSES makers.
    """
    again, losses, results = deque[Task](), Counter[Task](), dict[Task, Any]()
    for message in pool.run(lambda: again.popleft() if again else next(tasks, None)):
        check()
        if message is None:
            continue
        task = message.task
        if isinstance(message, TaskOutput):
            results[task] = message.value
        elif message.crash:
            losses[task] += 1
            if losses[task] >= LOSSES:
                raise ChildProcessError(
                    f"{task} has cost {LOSSES} workers, the last one by {message.crash}, usually for lack of memory; "
                    f"use fewer --workers"
                )
            print(f"a worker was lost ({message.crash}): {task} is made again", file=sys.stderr, flush=True)
            results.pop(task, None)
            again.append(task)
        else:
            yield task, results.pop(task)
