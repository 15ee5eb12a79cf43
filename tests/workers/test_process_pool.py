"""Processes that a task ends, and makers that are lost: tasks are named, and made again."""

import os
import signal
import threading
import time
from collections import deque
from multiprocessing.connection import wait

import pytest

from audiox_trainer.trainer.workers import machine_lock
from audiox_trainer.trainer.workers.driver import LOSSES, drive
from audiox_trainer.trainer.workers.machine_lock import MachineLock
from audiox_trainer.trainer.workers.pool import TaskEnd, TaskOutput
from audiox_trainer.trainer.workers.process_pool import ProcessPool

pytestmark = pytest.mark.slow


def yield_or_end(task):
    """A worker's function: the task, or the end of its process by the signal of that number."""
    if task < 100:
        os.kill(os.getpid(), task)
    yield task


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_process_that_a_task_ends(forkserver, method):
    tasks = deque([100, int(signal.SIGSEGV), 101])
    with ProcessPool([yield_or_end], method=method) as pool:
        found = list(pool.run(lambda: tasks.popleft() if tasks else None))
    assert [(m.task, m.crash if isinstance(m, TaskEnd) else m.value) for m in found if m] == [
        (100, 100),
        (100, ""),
        (signal.SIGSEGV, "SIGSEGV"),
        (101, 101),
        (101, ""),
    ]


def test_a_process_that_is_ended_from_outside(forkserver):
    tasks = deque([int(signal.SIGTERM)])
    message = r"a worker process was killed \(SIGTERM\) at 15"
    with ProcessPool([yield_or_end] * 2) as pool, pytest.raises(ChildProcessError, match=message):
        list(pool.run(lambda: tasks.popleft() if tasks else None))


def die_in_the_middle_of_a_message(task):
    """A worker's function: it is killed while a large output is on its way, as for lack of memory."""
    threading.Thread(target=lambda: (time.sleep(0.2), os.kill(os.getpid(), signal.SIGKILL))).start()
    yield bytes(1 << 28)


def test_a_process_that_is_killed_in_the_middle_of_a_message(forkserver):
    tasks = deque([100])
    with ProcessPool([die_in_the_middle_of_a_message]) as pool:
        found = []
        for message in pool.run(lambda: tasks.popleft() if tasks else None):
            if message is None and wait([pool._workers[0].pipe], 0):
                time.sleep(0.5)  # its pipe is full, and it dies
            found.append(message)
    assert [(m.task, m.crash) for m in found if m] == [(100, "SIGKILL")]


def yield_twice(task):
    yield task
    time.sleep(0.01)
    yield task


def test_an_output_that_nobody_has_read_yet_is_no_silence(forkserver):
    tasks = deque([100, 101])
    with ProcessPool([yield_twice] * 2, limit=2.0) as pool:
        found = []
        for message in pool.run(lambda: tasks.popleft() if tasks else None):
            if isinstance(message, TaskOutput) and not found:
                time.sleep(3.0)  # the reader is busy for longer than the limit
            found.append(message)
    assert not any(m.stuck for m in found if isinstance(m, TaskEnd))
    assert sorted(m.value for m in found if isinstance(m, TaskOutput)) == [100, 100, 101, 101]


def test_each_process_has_its_own_function(forkserver):
    with ProcessPool([Add(0), Add(1000)]) as pool:
        tasks = deque(range(100, 110))
        messages = list(pool.run(lambda: tasks.popleft() if tasks else None))
    assert {m.value - m.task for m in messages if isinstance(m, TaskOutput)} == {0, 1000}


class Add:
    def __init__(self, number):
        self.number = number

    def __call__(self, task):
        time.sleep(0.05)
        yield task + self.number


class LosingPool:
    """Its makers are lost as often as `losses` says for a task."""

    def __init__(self, losses):
        self.losses = losses

    def run(self, next_task):
        while (task := next_task()) is not None:
            yield TaskOutput(task, f"made {task}")
            lost = self.losses.get(task, 0) > 0
            self.losses[task] = self.losses.get(task, 0) - 1
            yield TaskEnd(task, crash="SIGKILL" if lost else "")
            yield None


def test_a_driver_gives_a_lost_task_to_another_maker(capsys):
    pool, looks = LosingPool({"b": LOSSES - 1}), []
    found = list(drive(pool, iter("abc"), lambda: looks.append(1)))
    assert sorted(found) == [(task, f"made {task}") for task in "abc"] and len(looks) > 6
    assert capsys.readouterr().err.count("a worker was lost (SIGKILL): b is made again") == LOSSES - 1


def test_a_task_that_costs_too_many_makers():
    with pytest.raises(ChildProcessError, match=f"b has cost {LOSSES} workers, the last one by SIGKILL"):
        list(drive(LosingPool({"b": 100}), iter("abc"), lambda: None))


def test_one_process_has_the_machine_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_lock.tempfile, "gettempdir", lambda: str(tmp_path))
    first, second, alone = MachineLock(), MachineLock(), MachineLock()
    assert first.share() and second.share() and not alone.be_alone()
    second.leave()
    assert not second.share(), "nobody new comes in"
    assert not alone.be_alone(), "the first still works"
    assert first.share(), "and may continue"
    first.leave()
    assert alone.be_alone() and not first.share()
    alone.leave()
    assert first.share() and second.share()
