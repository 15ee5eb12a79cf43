"""Batches are fetched while a step runs: in order, early, and with whatever they raise in its turn."""

import threading
import time

import pytest
import torch

from audiox_trainer.trainer.data.batches import Batch, Conditions
from audiox_trainer.trainer.data.prefetch import DEPTH, Prefetcher
from audiox_trainer.trainer.data.shards import ShardError

CPU = torch.device("cpu")


def test_what_is_read_comes_in_order_and_ends():
    with Prefetcher(iter(range(7)), CPU) as batches:
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

    with Prefetcher(source(), CPU) as batches:
        assert next(batches) == 0
        assert ready.wait(600)
        time.sleep(0.05)
        assert fetched == list(range(DEPTH + 1))  # and no more: batches are large
        waited = batches.waited
        next(batches)
        assert batches.waited - waited < 10


def test_a_fault_comes_when_it_is_its_turn():
    def source():
        yield from range(3)
        raise ShardError("shard 4 is damaged")

    with Prefetcher(source(), CPU) as batches:
        assert [next(batches) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ShardError, match="shard 4"):
            next(batches)


def test_waiting_is_counted_once():
    def source():
        for i in range(3):
            time.sleep(0.1)
            yield i

    with Prefetcher(source(), CPU) as batches:
        next(batches)
        assert batches.waited_since() > 0.05
        assert batches.waited_since() == 0
        assert batches.busy < 0.1  # sleeping is no work


def test_the_thread_takes_no_cores_from_the_step():
    threads = torch.get_num_threads()
    with Prefetcher((torch.get_num_threads() for _ in range(3)), CPU) as batches:
        assert list(batches) == [1, 1, 1]
    assert torch.get_num_threads() == threads
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [threads]


def test_text_features_on_a_device_are_not_pinned(monkeypatch):
    """T5 leaves them on the GPU; "meta" stands for it, of which torch pins as little."""
    pin = torch.Tensor.pin_memory

    def pin_memory(x):  # without a GPU torch pins nothing at all
        return x.clone() if x.device.type == "cpu" else pin(x)

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    text = torch.empty(2, 8, 4, device="meta")
    conditions = Conditions(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4), text, torch.tensor([8, 1]))
    batch = Batch(torch.zeros(2, 5, 4), conditions, torch.zeros(2, 5), torch.arange(2), ("t2a",) * 2, ("a", "b"))
    with Prefetcher(iter([batch]), torch.device("cuda")) as batches:
        pinned = next(batches)
    assert pinned.conditions.text is text
    assert pinned.conditions.video is not conditions.video and pinned.latents is not batch.latents
