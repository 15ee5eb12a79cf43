"""Triton launches on the process's current GPU; the kernels have to run on that of their tensors. Without a GPU the
tensors are fake ones on the second of two, and a launch only notes which GPU is current."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from audiox_trainer.kernels import swiglu
from tests.kernels.launches import launch_attention, launch_rows

SECOND = torch.device("cuda:1")


@pytest.fixture
def launches(monkeypatch):
    """The current GPU of each launch."""
    gpu, seen = SimpleNamespace(current=0), []

    def exchange(index):
        before = gpu.current
        gpu.current = index if index >= 0 else before
        return before

    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
    monkeypatch.setattr(type(swiglu._forward), "run", lambda *_, **__: seen.append(gpu.current))
    with FakeTensorMode():
        yield seen
    assert gpu.current == 0


def tensor(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device=SECOND)


def test_rows_launch_on_the_gpu_of_their_tensors(launches):
    x, gate, row = tensor(2, 5, 64), tensor(2, 64), tensor(2, 5)
    launch_rows(x, (gate, gate, gate), (row, row), x, tensor(2, 5, 32))
    assert launches == [1] * 8


def test_attention_launches_on_the_gpu_of_its_tensors(launches):
    streams = []
    for n in (5, 7):
        streams += [tensor(2, n, 3, 1, 32), tensor(32), tensor(32), tensor(n, 16), tensor(n, 16)]
    launch_attention([*streams, tensor(2, dtype=torch.int32)])
    assert launches == [1] * 6
