"""Checksums find every flipped bit, whatever the type and size of a tensor, and do not depend on the order of sums."""

import pytest
import torch
from torch import nn

from audiox_trainer.trainer.engine.checksum import checksum, gradient_checksum, replicated_weights

INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_every_flipped_bit_is_found(dtype, size):
    tensors = [torch.randn(size).to(dtype), torch.randn(4, 5).to(dtype)]
    before = checksum(tensors)
    assert before.dtype == torch.int64 and torch.equal(before, checksum([t.clone() for t in tensors]))
    for tensor in tensors:
        words = tensor.view(-1).view(INTEGERS[dtype])
        for index in range(len(words)):
            for bit in range(8 * words.element_size()):
                flip = -(1 << bit) if bit == 8 * words.element_size() - 1 else 1 << bit  # the sign's
                words[index] ^= flip
                assert not torch.equal(checksum(tensors), before), (index, bit)
                words[index] ^= flip
    assert torch.equal(checksum(tensors), before)


def test_tensors_have_places_and_their_layout_does_not_count():
    a, b = torch.randn(6, 4), torch.randn(6, 4)
    assert not torch.equal(checksum([a, b]), checksum([b, a]))
    assert torch.equal(checksum([a.T.contiguous().T]), checksum([a])), "not contiguous"


def test_a_gradient_is_the_same_twice_and_nobody_learns_from_it():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    unused = nn.Linear(2, 2)
    parameters = [*model.parameters(), *unused.parameters()]
    x = torch.randn(5, 4)
    first, second = (gradient_checksum(model(x).square().mean(), parameters) for _ in range(2))
    assert torch.equal(first, second)
    assert all(p.grad is None for p in parameters) and not any(p._backward_hooks for p in parameters)
    expected = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    zeros = [torch.zeros(8) for _ in unused.parameters()]
    assert torch.equal(first, checksum([*expected, *zeros])), "of the gradient that torch gives"
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-3
    assert not torch.equal(gradient_checksum(model(x).square().mean(), parameters), first)


def test_weights_that_zero_3_shards_are_not_replicated():
    model = nn.Linear(3, 2)
    assert len(replicated_weights(model)) == 2
    model.bias.ds_id = 0
    assert len(replicated_weights(model)) == 1
