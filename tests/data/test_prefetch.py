"""Batches are fetched beside the step: in order, early, and with whatever they raise in its turn."""

import threading
import time

import pytest
import torch

from audiox_trainer.trainer.data.prefetch import DEPTH, Ahead
from audiox_trainer.trainer.data.shards import ShardError

CPU = torch.device("cpu")


def test_what_is_read_comes_in_order_and_ends():
    with Ahead(iter(range(7)), CPU) as batches:
        assert list(batches) == list(range(7))


def test_the_next_ones_are_ready_while_a_step_goes_on():
    fetched = []
    ready = threading.Event()

    def source():
        for i in range(10):
            fetched.append(i)
            if i == DEPTH:
                ready.set()
            yield i

    with Ahead(source(), CPU) as batches:
        assert next(batches) == 0
        assert ready.wait(10)
        time.sleep(0.05)
        assert fetched == list(range(DEPTH + 1))  # and no more: batches are large
        waited = batches.waited
        next(batches)
        assert batches.waited - waited < 0.05


def test_a_fault_comes_when_it_is_its_turn():
    def source():
        yield from range(3)
        raise ShardError("shard 4 is damaged")

    with Ahead(source(), CPU) as batches:
        assert [next(batches) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ShardError, match="shard 4"):
            next(batches)


def test_waiting_is_counted_once():
    def source():
        for i in range(3):
            time.sleep(0.1)
            yield i

    with Ahead(source(), CPU) as batches:
        next(batches)
        assert 0.05 < batches.waited_since() < 0.5
        assert batches.waited_since() == 0
        assert batches.busy < 0.1  # sleeping is no work


def test_the_thread_takes_no_cores_from_the_step():
    threads = torch.get_num_threads()
    with Ahead((torch.get_num_threads() for _ in range(3)), CPU) as batches:
        assert list(batches) == [1, 1, 1]
    assert torch.get_num_threads() == threads
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [threads]
