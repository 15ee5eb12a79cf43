"""The casts to 8 bits around a block's operations: what they round; operations are compared and timed with them."""

import pytest
import torch

from audiox_trainer.kernels.ops import BACKENDS, OPS
from audiox_trainer.trainer.engine import kernel_selection
from audiox_trainer.trainer.engine.fp8_casts import GRADIENTS, VALUES, of_product, product, rounded, with_casts
from audiox_trainer.trainer.engine.kernel_cases import BlockShape, kernel_cases

CPU = torch.device("cpu")
SHAPE = BlockShape(batch=2, latent=5, condition=9, heads=2, head_width=16, hidden=24)


@pytest.mark.parametrize(("kind", "step"), [(VALUES, 2**-4), (GRADIENTS, 2**-3)])
def test_values_are_rounded_with_one_scale(kind, step):
    x = torch.randn(64, 64, dtype=torch.bfloat16)
    y = rounded(x, kind)
    assert y.dtype == x.dtype and len(y.unique()) < 256 < len(x.unique())
    large = x.abs() > x.abs().max() / 64
    assert ((y - x).abs() / x.abs())[large].max() <= step + 2**-7
    assert rounded(torch.zeros(3), kind).tolist() == [0, 0, 0]
    assert y.abs().max().item() == pytest.approx(x.abs().max().item(), rel=2**-7)  # nothing is cut off


def test_an_input_is_rounded_forward_and_a_gradient_backward():
    x, g = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7)
    y = product(x)
    assert torch.equal(y, rounded(x.detach(), VALUES)) and torch.equal(torch.autograd.grad(y, x, g)[0], g)
    y = of_product(x)
    assert torch.equal(y, x) and torch.equal(torch.autograd.grad(y, x, g)[0], rounded(g, GRADIENTS))


def test_each_operation_is_rounded_where_products_are_next_to_it():
    """Inputs that come out of products have rounded gradients, outputs that go into products are rounded."""
    cases = kernel_cases(SHAPE, CPU, torch.float32)
    expected = {  # per stream: rounded outputs, inputs whose gradient is rounded
        "joint_attention": ([0], [0]),
        "layer_norm_modulate": ([0], []),
        "gated_residual": ([], [1]),
        "gated_residual_layer_norm_modulate": ([1], [1]),
        "swiglu": ([0], [0]),
    }
    for op in OPS:
        case = cases[op]
        plain = case.forward(BACKENDS[op]["reference"])
        outputs = case.forward(with_casts(op, BACKENDS[op]["reference"]))
        gradients = torch.autograd.grad(outputs, case.inputs, [torch.randn_like(y) for y in outputs])
        per_stream, of_inputs = len(outputs) // 2, len(case.inputs) // 2
        for i, (a, b) in enumerate(zip(outputs, plain, strict=True)):
            is_rounded = i % per_stream in expected[op][0]
            assert torch.equal(a, rounded(b, VALUES) if is_rounded else b), (op, i)
        for i, gradient in enumerate(gradients[:of_inputs]):
            is_rounded = torch.allclose(rounded(gradient, GRADIENTS), gradient, rtol=1e-5, atol=0)
            assert is_rounded == (i in expected[op][1]), (op, i)


@pytest.mark.parametrize("op", OPS)
def test_operations_are_timed_with_their_casts(op):
    case = kernel_cases(SHAPE, CPU, torch.float32)[op]
    rows = kernel_selection.measure_backends(
        op, case, ["reference"], SHAPE, CPU, torch.float32, compiled=False, rounds=1, inner=1, fp8=True
    )
    assert [(row["backend"], row["fp8"]) for row in rows] == [("reference", True)]
    assert kernel_selection.nearest_rows(rows, kernel_selection.row_conditions(SHAPE, CPU, torch.float32)) == []
