"""The Triton kernels against the references in float64: odd lengths, every dtype, every output and gradient.

On a GPU where there is one, otherwise in Triton's interpreter, which cuts bfloat16 off where hardware rounds: hence its
wider tolerance.
"""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from audiox_trainer.kernels import adaln, device, gated_residual, joint_attention, swiglu
from audiox_trainer.kernels.joint_attention import StreamInput

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}  # of the largest value


def off(actual, expected, dtype):
    """The largest deviation as a share of the largest value, if it is above the tolerance."""
    scale = expected.abs().max().clamp_min(1e-3)
    worst = ((actual.double() - expected).abs().max() / scale).item()
    return "" if worst < TOLERANCE[dtype] else f"{worst:.1e} of the largest value"


def disagreements(ours, reference, tensors, dtype):
    """Where outputs and gradients of `ours` are not those of `reference` on the same, already rounded, inputs in
    float64."""
    mine = [x.detach().clone().to(DEVICE).requires_grad_() for x in tensors]
    theirs = [x.detach().double().to(DEVICE).requires_grad_() for x in tensors]
    outputs, expected = ([y] if isinstance(y, torch.Tensor) else list(y) for y in (ours(*mine), reference(*theirs)))
    gradients = [torch.randn(y.shape).to(y) for y in outputs]
    torch.autograd.backward(outputs, gradients)
    torch.autograd.backward(expected, [g.double() for g in gradients])
    assert [(y.dtype, y.shape) for y in outputs] == [(dtype, y.shape) for y in expected]
    assert [x.grad.dtype for x in mine] == [x.dtype for x in mine]
    found = {f"output {i}": off(a, b, dtype) for i, (a, b) in enumerate(zip(outputs, expected, strict=True))}
    pairs = enumerate(zip(mine, theirs, strict=True))
    found |= {f"gradient of input {i}": off(a.grad, b.grad, dtype) for i, (a, b) in pairs}
    return {where: how for where, how in found.items() if how}


DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
MANY_ROWS = pytest.param((1, 383, 24), marks=pytest.mark.long)
ROWS = pytest.mark.parametrize("shape", [(1, 1, 8), (2, 7, 17), (1, 215, 40), MANY_ROWS], ids=str)  # B, L, W


def rows(shape, dtype):
    """x, branch (B, L, W), and gate, shift, scale (B, W): neighbouring chunks of one product, as in a block."""
    x, branch = (2 * torch.randn(shape) + 1).to(dtype), torch.randn(shape).to(dtype)
    return x, branch, *torch.randn(shape[0], 3 * shape[2]).chunk(3, dim=-1)


@DTYPES
@ROWS
def test_layer_norm_modulate(shape, dtype):
    x, _, _, shift, scale = rows(shape, dtype)
    assert disagreements(adaln.layer_norm_modulate_triton, adaln.layer_norm_modulate, (x, shift, scale), dtype) == {}


@DTYPES
@ROWS
def test_gated_residual(shape, dtype):
    x, branch, gate, _, _ = rows(shape, dtype)
    assert (
        disagreements(gated_residual.gated_residual_triton, gated_residual.gated_residual, (x, branch, gate), dtype)
        == {}
    )


@DTYPES
@ROWS
def test_gated_residual_with_norm(shape, dtype):
    ours = gated_residual.gated_residual_layer_norm_modulate_triton
    assert disagreements(ours, gated_residual.gated_residual_layer_norm_modulate, rows(shape, dtype), dtype) == {}


@DTYPES
@ROWS
def test_swiglu(shape, dtype):
    assert (
        disagreements(swiglu.swiglu_triton, swiglu.swiglu, (torch.randn(*shape[:2], 2 * shape[2]).to(dtype),), dtype)
        == {}
    )


def test_one_modulation_for_all_samples():
    """Modulations that depend on a sampler's step alone are one row, seen by every sample."""
    x = torch.randn(3, 5, 16, device=DEVICE)
    shift, scale = torch.randn(2, 1, 16, device=DEVICE).expand(2, 3, 16).unbind(0)
    actual = adaln.layer_norm_modulate_triton(x, shift, scale)
    torch.testing.assert_close(actual, adaln.layer_norm_modulate(x, shift, scale), atol=1e-5, rtol=1e-5)


def stream(batch, n, heads, head, dtype):
    """QKV and the two norm weights, and the rotation of `n` tokens."""
    angles = torch.randn(n, head // 2)
    norms = [(1 + 0.2 * torch.randn(head)).to(dtype) for _ in range(2)]
    rotation = angles.cos().to(DEVICE), angles.sin().to(DEVICE)
    return [torch.randn(batch, n, 3, heads, head).to(dtype), *norms], rotation


def joint(attend, rotations, length):
    """`attend` as a function of the six tensors that have gradients; padded condition tokens' output is taken as 0."""

    def call(*tensors):
        a, b = StreamInput(*tensors[:3], *rotations[0]), StreamInput(*tensors[3:], *rotations[1])
        x, c = attend(a, b, None if length is None else length.to(DEVICE))
        if length is not None:
            c = c * (torch.arange(c.shape[1]) < length[:, None]).to(c)[:, :, None]
        return x, c

    return call


@DTYPES
@pytest.mark.parametrize(
    "case",
    [  # latent tokens, condition tokens, head width, condition lengths
        (1, 7, 64, None),
        (7, 1, 64, (1,)),
        (33, 40, 64, (5, 40)),
        (33, 40, 32, (5, 40)),
        (130, 70, 128, (33,)),
        (215, 33, 64, None),
        (215, 383, 64, (383,)),
    ],
    ids=str,
)
def test_joint_attention(case, dtype):
    latent, condition, head, lengths = case
    batch, heads = 1 if lengths is None else len(lengths), 2 if latent < 100 else 1
    (x, rotation_x), (c, rotation_c) = (stream(batch, n, heads, head, dtype) for n in (latent, condition))
    length = None if lengths is None else torch.tensor(lengths)
    both = (rotation_x, rotation_c)
    ours = joint(joint_attention.joint_attention_triton, both, length)
    assert disagreements(ours, joint(joint_attention.joint_attention, both, length), (*x, *c), dtype) == {}


def test_padding_reaches_nothing():
    """The values of padded condition tokens change neither outputs nor the gradients of others, not even if it is
    not a number."""
    (x, rotation_x), (c, rotation_c) = (stream(2, n, 1, 64, torch.float32) for n in (9, 20))
    length = torch.tensor([3, 20])
    results = []
    for filler in (0.0, 1e4, float("nan")):
        c[0][0, 3:] = filler
        tensors = [t.detach().clone().to(DEVICE).requires_grad_() for t in (*x, *c)]
        latent, condition = StreamInput(*tensors[:3], *rotation_x), StreamInput(*tensors[3:], *rotation_c)
        out = joint_attention.joint_attention_triton(latent, condition, length.to(DEVICE))
        (out[0].sum() + out[1].sum()).backward()
        results.append([*out, tensors[0].grad, tensors[3].grad, tensors[5].grad])
    assert results[0][1][0, 3:].abs().max() == 0 and results[0][3][0, 3:].abs().max() == 0
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def composite(x, gate, shift, scale, norm):
    """A little of a block: norm, SwiGLU, gated residual with norm, joint attention of its tokens with themselves."""
    y = adaln.layer_norm_modulate_triton(x, shift, scale)
    y = swiglu.swiglu_triton(torch.cat((y, y), dim=-1))
    x, y = gated_residual.gated_residual_layer_norm_modulate_triton(x, y, gate, shift, scale)
    x = gated_residual.gated_residual_triton(x, y, gate)
    n = x.shape[1]
    qkv = torch.stack((x, y, x), dim=2).unsqueeze(3)  # (B, N, 3, 1, W)
    cos, sin = torch.ones(n, 16, device=x.device), torch.zeros(n, 16, device=x.device)
    half = StreamInput(qkv, norm, norm, cos, sin)
    return sum(joint_attention.joint_attention_triton(half, half, None))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["compiled", "checkpointed", "both"])
def test_under_compilation_and_checkpointing(how):
    tensors = [torch.randn(2, 5, 32), *(torch.randn(2, 32) for _ in range(3)), torch.ones(32)]

    def run(call):
        inputs = [t.clone().to(DEVICE).requires_grad_() for t in tensors]
        call(*inputs).square().sum().backward()
        return [t.grad for t in inputs]

    device.make_operators()
    call = torch.compile(composite, fullgraph=True) if how != "checkpointed" else composite
    if how != "compiled":
        inner = call

        def call(*inputs):
            return checkpoint(inner, *inputs, use_reentrant=False)

    for a, b in zip(run(call), run(composite), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_operators_are_registered_as_torch_wants_them():
    def checked(operator, inputs):
        return set(torch.library.opcheck(operator.make(), inputs).values())

    x, shift, scale = torch.randn(2, 3, 8), torch.randn(2, 8), torch.randn(2, 8)
    inputs = tuple(t.to(DEVICE).requires_grad_() for t in (x, shift, scale))
    assert checked(adaln._layer_norm_modulate, inputs) == {"SUCCESS"}
    assert checked(swiglu._swiglu, (torch.randn(2, 3, 8, device=DEVICE, requires_grad=True),)) == {"SUCCESS"}
    gate, branch = torch.randn(2, 8, device=DEVICE), torch.randn(2, 3, 8, device=DEVICE)
    assert checked(gated_residual._gated_residual, (inputs[0], branch, gate)) == {"SUCCESS"}
    assert checked(gated_residual._gated_residual_norm, (inputs[0], branch, gate, *inputs[1:])) == {"SUCCESS"}
    (x, rotation_x), (c, rotation_c) = (stream(1, n, 1, 32, torch.float32) for n in (3, 2))
    streams = [t.to(DEVICE).requires_grad_() for t in x], [t.to(DEVICE).requires_grad_() for t in c]
    lengths = torch.tensor([2], dtype=torch.int32, device=DEVICE)
    attention = (*streams[0], *rotation_x, *streams[1], *rotation_c, lengths)
    assert checked(joint_attention._joint_attention, attention) == {"SUCCESS"}
