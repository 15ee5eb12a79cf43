"""The parts of a step are told apart: communication inside a pass is not the pass's."""

from unittest import mock

import torch

from audiox_trainer.trainer.engine.step_times import PARTS, StepTimes

MODULE = "audiox_trainer.trainer.engine.step_times.time.perf_counter"


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Work:
    def __init__(self, clock):
        self.clock = clock

    def wait(self):
        self.clock.now += 3.0
        return "done"

    def is_completed(self):
        return False


class Backend:
    """Collective operations that take a second each, and one whose wait takes three."""

    def __init__(self, clock):
        self.clock = clock

    def all_reduce(self, tensor):
        self.clock.now += 1.0

    def all_gather(self, tensor, async_op=False):
        self.clock.now += 0.25
        return Work(self.clock)


def take_step(times, clock, backend, backward):
    with times("data"):
        clock.now += 0.5
    with times("forward"):
        clock.now += 2.0
        work = backend.all_gather(None, async_op=True)
        assert not work.is_completed()
        assert work.wait() == "done"
    with times("backward"):
        clock.now += backward
        backend.all_reduce(None)
    backend.all_reduce(None)  # of the optimizer
    times.end_step()


def test_parts_of_a_step():
    clock, times = Clock(), StepTimes(torch.device("cpu"))
    backend = Backend(clock)
    times.time_collectives(backend)
    with mock.patch(MODULE, clock):
        take_step(times, clock, backend, 4.0)
        assert times.medians() == [], "nothing is measured before it is switched on"
        times.active = True
        for backward in (4.0, 99.0, 5.0, 1.0):
            take_step(times, clock, backend, backward)
    seconds = dict(zip(PARTS, times.medians(), strict=True))
    assert seconds == {"data": 0.5, "forward": 2.0, "backward": 5.0, "communication": 5.25}
    assert times.medians() == [], "since the last call"
