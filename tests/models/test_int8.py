"""Frozen weights in 8 bits: their error, their products and gradients, and what stays of them in a cast or a state."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from audiox_trainer.models.int8 import Int8Conv1d, Int8Linear, Int8Weight, int8_tensors, quantized
from audiox_trainer.models.lora import LoraConv1d, LoraLinear, add_adapters
from audiox_trainer.models.networks import count_parameters
from tests.helpers.random_weights import inputs, stirred
from tests.models.test_lora import OURS, RELEASED, plain_and_compiled, released, released_inputs, trained


@pytest.fixture(params=["ours", "released"])
def case(request, small):
    """A network, inputs, and a configuration of adapters with 8-bit weights."""
    torch.manual_seed(1)
    if request.param == "ours":
        return stirred(small.model), inputs(small.model), replace(OURS, int8=True)
    return released(), released_inputs(), replace(RELEASED, int8=True)


@pytest.mark.parametrize("shape", [(7, 13), (5, 3, 3), (1, 1)])
def test_the_error_is_half_a_step_of_a_rows_scale(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.logspace(-6, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    weight[-1] = 0
    held = Int8Weight(weight)
    error = (held.restored() - weight).flatten(1).abs()
    assert (error <= 0.5001 * held.scale[:, None]).all() and not held.restored()[-1].any()
    assert held.values.dtype == torch.int8 and held.values.shape == weight.shape and held.values.abs().max() <= 127
    again = Int8Weight(weight)
    assert torch.equal(again.values, held.values) and torch.equal(again.scale, held.scale)


LAYERS = {
    "linear": (lambda: nn.Linear(11, 6), (2, 5, 11)),
    "without bias": (lambda: nn.Linear(11, 6, bias=False), (3, 11)),
    "convolution": (lambda: nn.Conv1d(5, 9, 3, padding=1), (2, 5, 7)),
    "no padding": (lambda: nn.Conv1d(5, 9, 4, bias=False), (2, 5, 7)),
    "wide padding": (lambda: nn.Conv1d(5, 2, 1, padding=2), (1, 5, 4)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_products_and_gradients_are_those_of_the_restored_weight(name, dtype):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make().requires_grad_(False)
    eight = quantized(layer)
    assert isinstance(eight, Int8Linear | Int8Conv1d)
    with torch.no_grad():
        layer.weight.copy_(eight.int8.restored())
    layer, eight = layer.to(dtype), eight.to(dtype)
    assert eight.int8.scale.dtype == torch.float32 and eight.int8.values.dtype == torch.int8
    a, b = (torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_() for _ in "ab")
    expected, found = layer(a), eight(b)
    gradient = torch.randn(expected.shape).to(dtype)
    expected.backward(gradient)
    found.backward(gradient)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(found, expected, **tolerance)
    torch.testing.assert_close(b.grad, a.grad, **tolerance)


def test_a_cast_keeps_the_scales():
    held = Int8Weight(torch.randn(4, 6))
    before = held.scale.clone()
    for change in (held.bfloat16, held.half, held.double, held.float):
        change()
        assert torch.equal(held.scale, before) and held.scale.dtype == torch.float32
    assert held.to("meta").scale.dtype == torch.float32


def test_a_backward_pass_keeps_8_bits():
    """Not the weight that a product has converted, which would be four times as large."""
    saved = []
    eight = quantized(nn.Linear(64, 64).requires_grad_(False))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        eight(torch.randn(2, 64, requires_grad=True))
    assert sorted(x.nbytes for x in saved) == [4 * 64, 64 * 64]


def test_other_layers_stay():
    assert quantized(nn.Linear(2, 2)) is None  # it is trained
    for layer in (
        nn.Conv1d(2, 2, 3, stride=2),
        nn.Conv1d(2, 2, 3, groups=2),
        nn.Conv1d(2, 2, 3, padding="same"),
        nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.LayerNorm(2),
    ):
        assert quantized(layer.requires_grad_(False)) is None


def test_a_network_with_8_bit_blocks(case):
    network, given, config = case
    before, count, state = network(*given), count_parameters(network)["total"], network.state_dict()
    add_adapters(network, config)
    eight = [m for m in network.modules() if isinstance(m, Int8Linear | Int8Conv1d)]
    adapted = [m for m in network.modules() if isinstance(m, LoraLinear | LoraConv1d) and m.int8 is not None]
    assert eight and adapted and sum(1 for _ in int8_tensors(network)) == 2 * (len(eight) + len(adapted))
    for block in network.backbone.blocks:
        frozen = [p for p in block.parameters() if not p.requires_grad]
        assert all(p.ndim == 1 for p in frozen)
    adapters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert count_parameters(network)["total"] == count + adapters
    assert not any("int8" in name for name in network.state_dict()), "it is made again from the weights"
    change = (network(*given) - before).norm() / before.norm()
    assert 0 < change < 0.05
    trained(network)
    network(*given).square().mean().backward()
    assert {n for n, p in network.named_parameters() if p.grad is not None} == {
        n for n, p in network.named_parameters() if p.requires_grad
    }
    assert all(torch.equal(x, state[name]) for name, x in network.state_dict().items() if name in state)


def test_recomputed_blocks_have_the_same_gradients(case):
    network, given, config = case
    add_adapters(network, config)
    trained(network)
    results = []
    for network.backbone.checkpointing in (False, True):
        network.zero_grad()
        network(*given).square().mean().backward()
        results.append([p.grad.clone() for p in network.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.long
def test_compiled_blocks_compute_the_same(case):
    torch.testing.assert_close(*plain_and_compiled(case), rtol=1e-4, atol=1e-5)


def test_the_product_is_that_of_the_field(small):
    """torchao quantizes a row in the same way, to the next step where a half is rounded."""
    quant = pytest.importorskip("torchao.quantization")
    torch.manual_seed(0)
    layer = nn.Linear(32, 16, bias=False).requires_grad_(False)
    theirs, x = nn.Sequential(nn.Linear(32, 16, bias=False)), torch.randn(3, 32)
    theirs[0].load_state_dict(layer.state_dict())
    quant.quantize_(theirs, quant.Int8WeightOnlyConfig())
    ours = quantized(layer)(x)
    torch.testing.assert_close(ours, theirs(x), rtol=0.01, atol=0.01)
    assert not torch.equal(ours, F.linear(x, layer.weight))
