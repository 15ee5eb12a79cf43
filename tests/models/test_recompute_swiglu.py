"""SwiGLU's output computed again in the backward pass: the same gradients, bit by bit, from less that is stored."""

from dataclasses import replace

import pytest
import torch

from audiox_trainer.kernels.swiglu import swiglu
from audiox_trainer.models.blocks import SwiGLU, recompute_swiglu
from audiox_trainer.models.lora import LoraConfig, add_adapters
from audiox_trainer.trainer.engine.compilation import compile_blocks
from tests.helpers.random_weights import inputs, stirred

DOWN = LoraConfig(4, ("backbone.blocks.*.mlp.down",))
ADAPTERS = {"all weights": None, "adapters": DOWN, "adapters of 8-bit weights": replace(DOWN, int8=True)}


def gradients(model, given):
    model.zero_grad()
    loss = model(*given).float().square().mean()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {"": loss.detach()}


@pytest.mark.parametrize("adapters", ADAPTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_the_same_bits(small, dtype, adapters):
    torch.manual_seed(1)
    model, given = stirred(small.model), inputs(small.model)
    if adapted := ADAPTERS[adapters]:
        add_adapters(model, adapted)
    model, given = model.to(dtype), [x.to(dtype) if x.is_floating_point() else x for x in given]
    stored = gradients(model, given)
    recompute_swiglu(model, True)
    again = gradients(model, given)
    assert stored.keys() == again.keys() and all(torch.equal(stored[name], again[name]) for name in stored)


@pytest.mark.parametrize("trained", [True, False])
def test_it_is_computed_again_where_it_is_needed(trained):
    """The gradient of a last product that is frozen does not need its input."""
    mlp, calls = SwiGLU(8, 16), []
    mlp.down.requires_grad_(trained)
    mlp.ops = replace(mlp.ops, swiglu=lambda ab: calls.append(ab.shape) or swiglu(ab))
    recompute_swiglu(mlp, True)
    mlp(torch.randn(2, 3, 8, requires_grad=True)).sum().backward()
    assert calls == [(2, 3, 32)] * (2 if trained else 1)
    with torch.no_grad():
        mlp(torch.randn(2, 3, 8))
    assert len(calls) == (3 if trained else 2)


@pytest.mark.long
def test_compiled_blocks_compute_the_same(small):
    torch.manual_seed(1)
    model, given = stirred(small.model), inputs(small.model)
    stored = gradients(model, given)
    recompute_swiglu(model, True)
    compile_blocks(model)
    torch.testing.assert_close(gradients(model, given), stored, atol=1e-4, rtol=1e-4)
