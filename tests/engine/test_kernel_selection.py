"""The implementation of an operation that runs: selection, refusal, tables; and all compute the same in a model."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from audiox_trainer.kernels import concatenated_attention, ops
from audiox_trainer.kernels.joint_attention import StreamInput, joint_attention
from audiox_trainer.kernels.ops import BACKENDS, OPS, REFERENCE, KernelsConfig
from audiox_trainer.models.audiox import AudioX
from audiox_trainer.trainer.benchmarks import kernels
from audiox_trainer.trainer.engine import kernel_selection
from audiox_trainer.trainer.engine.kernel_cases import BlockShape, kernel_cases
from tests.helpers.small_config import small_config

CPU = torch.device("cpu")
SHAPE = BlockShape(batch=2, latent=5, condition=9, heads=2, head_width=16, hidden=24)


def streams(lengths, latent=6, condition=9, heads=2, head=16):
    def one(n):
        angles = torch.randn(n, head // 2)
        norms = [1 + 0.2 * torch.randn(head, requires_grad=True) for _ in range(2)]
        qkv = torch.randn(len(lengths), n, 3, heads, head, requires_grad=True)
        return StreamInput(qkv, *norms, angles.cos(), angles.sin())

    return one(latent), one(condition), torch.tensor(lengths)


def flash_of_torch(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **_):
    """Does what flash-attn's function for several lengths does: every sequence attends only to itself."""
    assert cu_seqlens_q.dtype == torch.int32 and int(cu_seqlens_q[-1]) == len(q)
    out = torch.empty_like(q)
    for a, b in zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist()[1:], strict=False):
        assert b - a <= max_seqlen_k
        if a < b:
            one = [x[a:b].transpose(0, 1) for x in (q, k, v)]
            out[a:b] = torch.nn.functional.scaled_dot_product_attention(*one).transpose(0, 1)
    return out


@pytest.mark.parametrize("lengths", [(9, 9), (1, 4), (9, 2)])
@pytest.mark.parametrize("kind", ["sdpa", "flash"])
def test_concatenated_attention_equals_the_reference(kind, lengths, monkeypatch):
    monkeypatch.setattr(concatenated_attention, "flash_function", lambda: flash_of_torch)
    latent, condition, length = streams(lengths)
    real = (torch.arange(9) < length[:, None])[..., None]
    results = []
    for attend in (BACKENDS["joint_attention"][kind], joint_attention):
        x, c = attend(latent, condition, length)
        gradients = torch.autograd.grad(x.square().sum() + (c * real).square().sum(), (latent.qkv, condition.qkv))
        results.append((x, c * real, *gradients))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_padding_is_a_sequence_of_its_own():
    bounds = concatenated_attention.sequence_bounds(3, 4, 5, torch.tensor([5, 0, 2]), CPU)
    assert bounds.tolist() == [0, 9, 9, 13, 18, 24, 27]
    assert concatenated_attention.sequence_bounds(2, 4, 5, None, CPU).tolist() == [0, 9, 9, 18, 18]


@pytest.mark.slow
def test_a_model_computes_the_same_with_triton_kernels():
    """The whole model, forward and backward, with the kernels in every block."""
    torch.manual_seed(0)
    model = AudioX(small_config(None, "model.backbone.heads=1").model)  # the kernels' narrowest heads
    for p in model.parameters():  # those that start at zero would hide what stands before them
        torch.nn.init.normal_(p, std=0.1)
    config = model.config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    inputs = [
        torch.randn(2, config.codec.frames, config.codec.latent_channels),
        torch.rand(2),
        torch.randn(2, config.video.steps, config.video.dim),
        torch.randn(2, config.codec.frames, config.codec.latent_channels),
        torch.randn(2, 7, config.text.dim),
        torch.tensor([3, 7]),
    ]
    inputs = [x.to(device) for x in inputs]
    outputs = []
    for functions in (REFERENCE, ops.resolve(dict.fromkeys(OPS, "triton"))):
        model.use(functions)
        model.zero_grad()
        v = model(*inputs)
        v.square().mean().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        outputs.append([v.detach(), *gradients])
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-3)


def test_on_a_cpu_auto_is_the_reference_and_nothing_is_measured():
    selection, measured = kernel_selection.select_for_shape(KernelsConfig(), SHAPE, CPU, torch.float32)
    assert selection.ops() == REFERENCE and measured == []
    assert selection.lines()[0] == "joint_attention: reference (auto on cpu)"


def test_auto_follows_a_table_and_measures_what_it_lacks(monkeypatch, capsys):
    """A device that has every backend: the selection is the fastest row for this device, dtype and shape."""
    gpu = torch.device("cuda")
    monkeypatch.setattr(kernel_selection, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(kernel_selection, "available", lambda op, device, dtype, head: list(BACKENDS[op]))
    monkeypatch.setattr(kernel_selection, "kernel_cases", lambda *given: dict.fromkeys(OPS))
    facts = kernel_selection.row_conditions(SHAPE, gpu, torch.bfloat16)

    def row(op, backend, ms, **other):
        return {"op": op, "backend": backend, "forward_ms": ms, "backward_ms": 2 * ms} | facts | other

    asked = []

    def measure(op, case, candidates, *given, fp8):
        asked.append(op)
        kind = {"fp8": True} if fp8 else {}
        return [row(op, backend, 1.0 + i, **kind) for i, backend in enumerate(reversed(candidates))]

    monkeypatch.setattr(kernel_selection, "measure_backends", measure)
    table = [
        row("joint_attention", "cudnn", 2.0),
        row("joint_attention", "flash", 1.0),
        row("joint_attention", "triton", 0.5, dtype="float32"),
        row("swiglu", "triton", 0.1, device="another GPU"),
    ]
    configured = KernelsConfig(gated_residual="triton")
    selection, measured = kernel_selection.select_for_shape(configured, SHAPE, gpu, torch.bfloat16, table)
    assert selection.names["joint_attention"] == "flash"
    assert selection.reasons["joint_attention"] == "auto, table at batch 2: flash 3 ms, cudnn 6 ms"
    assert selection.names["gated_residual"] == "triton" and selection.reasons["gated_residual"] == "as configured"
    assert selection.names["swiglu"] == "reference"  # which was measured as the fastest
    assert asked == ["layer_norm_modulate", "gated_residual_layer_norm_modulate", "swiglu"]
    again, nothing = kernel_selection.select_for_shape(configured, SHAPE, gpu, torch.bfloat16, table + measured)
    assert again.names == selection.names and nothing == []
    said = capsys.readouterr().out
    assert "swiglu: the table has no row for {'device': 'a GPU'" in said and "joint_attention" not in said
    asked.clear()  # with casts to 8 bits everything is measured again, and kept apart
    _, rounded = kernel_selection.select_for_shape(configured, SHAPE, gpu, torch.bfloat16, table, fp8=True)
    assert asked == [op for op in OPS if op != "gated_residual"] and all(row["fp8"] for row in rounded)
    again, nothing = kernel_selection.select_for_shape(configured, SHAPE, gpu, torch.bfloat16, rounded, fp8=True)
    assert nothing == [] and again.names["joint_attention"] == "reference"
    larger = replace(SHAPE, batch=16)  # the same model: the rows at the nearest batch hold
    other = [row("swiglu", "triton", 9.0, shape=asdict(replace(SHAPE, batch=64)))]
    again, nothing = kernel_selection.select_for_shape(
        configured, larger, gpu, torch.bfloat16, table + measured + other
    )
    assert again.names["swiglu"] == "triton" and again.names["joint_attention"] == "flash" and nothing == []
    assert again.reasons["joint_attention"].startswith("auto, table at batch 2")


def test_measuring_fills_a_table_that_can_be_read_back(tmp_path):
    ready = kernel_cases(SHAPE, CPU, torch.float32)
    rows = []
    for op in OPS:
        names = ["sdpa", "reference"] if op == "joint_attention" else ["reference"]
        rows += kernel_selection.measure_backends(
            op, ready[op], names, SHAPE, CPU, torch.float32, compiled=False, rounds=2, inner=1
        )
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"rows": rows}))
    assert kernel_selection.read_table(path) == rows
    assert [row["op"] for row in rows] == ["joint_attention", *OPS]
    for row in rows:
        assert row["forward_ms"] > 0 and row["backward_ms"] > 0
        assert kernel_selection.nearest_rows([row], kernel_selection.row_conditions(SHAPE, CPU, torch.float32)) == [row]
        assert kernel_selection.nearest_rows([row], kernel_selection.row_conditions(SHAPE, CPU, torch.bfloat16)) == []
        assert (
            kernel_selection.nearest_rows(
                [row], kernel_selection.row_conditions(replace(SHAPE, heads=3), CPU, torch.float32)
            )
            == []
        )


@pytest.mark.long
def test_a_compiled_backend_can_be_compared_and_timed():
    """Its backward is called more than once on the same forward."""
    case = kernel_cases(SHAPE, CPU, torch.float32)["layer_norm_modulate"]
    compiled = {"reference": kernel_selection.as_in_run("layer_norm_modulate", "reference", compiled=True)}
    found, failed = kernel_selection.time_implementations("layer_norm_modulate", case, compiled, CPU, 2, 2)
    assert list(found) == ["reference"] and failed == {}


def test_a_backend_that_fails_takes_no_part(monkeypatch, capsys):
    def broken(x):
        raise RuntimeError("no kernel image\nand more")

    monkeypatch.setitem(BACKENDS, "swiglu", {"triton": broken, "reference": BACKENDS["swiglu"]["reference"]})
    case = kernel_cases(SHAPE, CPU, torch.float32)["swiglu"]
    rows = kernel_selection.measure_backends(
        "swiglu", case, ["triton", "reference"], SHAPE, CPU, torch.float32, False, 1, 1
    )
    assert [row["backend"] for row in rows] == ["reference"]
    assert "swiglu: triton does not run here: no kernel image\n" in capsys.readouterr().out


@pytest.mark.parametrize("off", ["output", "gradient", "nan"])
def test_a_backend_with_wrong_results_takes_no_part(monkeypatch, capsys, off):
    swiglu = BACKENDS["swiglu"]["reference"]

    def wrong(x):
        y = swiglu(x)
        if off == "gradient":
            return y + 0.1 * (x - x.detach())[..., : y.shape[-1]]
        return y * (1.1 if off == "output" else float("nan"))

    monkeypatch.setitem(BACKENDS, "swiglu", {"triton": wrong, "reference": swiglu})
    case = kernel_cases(SHAPE, CPU, torch.float32)["swiglu"]
    found, failed = kernel_selection.time_implementations("swiglu", case, BACKENDS["swiglu"], CPU, 1, 1)
    assert list(found) == ["reference"] and "off by" in failed["triton"]
    assert "swiglu: triton does not run here: output or gradient" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("way", ["flex_attention", "sdpa, math", "torch's flash, sequences"])
def test_alternatives_compute_the_same(monkeypatch, way):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", flash_of_torch)
    case = kernel_cases(SHAPE, CPU, torch.float32)["joint_attention"]
    attend = kernels.alternatives(SHAPE, CPU)[way]
    with torch.no_grad():  # FlexAttention has no backward on a CPU
        found, expected = (case._without_padding(case.forward(call)) for call in (attend, joint_attention))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backward", [False, True])
def test_calls_that_are_timed_take_turns_with_copies_of_the_inputs(backward):
    """Copies, so that a GPU's cache does not hold the inputs. The results are those of one call."""
    case = kernel_cases(SHAPE, CPU, torch.float32)["gated_residual"]
    seen = []

    def implementation(x, branch, gate):
        seen.append(x.data_ptr())
        return x + branch * gate.unsqueeze(1)

    call = case.timed_call(implementation, backward, uncached=3 * case.forward_bytes)
    for _ in range(3):
        call()
    assert len(set(seen)) == 6  # three copies of two streams
    again = case.timed_call(implementation, backward)
    seen.clear()
    again(), again()
    assert len(set(seen)) == (0 if backward else 2)


def test_everything_but_triton_is_compiled_as_in_a_run(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda call, dynamic: ("compiled", call, dynamic))
    for backend, call in BACKENDS["joint_attention"].items():
        expected = call if backend == "triton" else ("compiled", call, False)
        assert kernel_selection.as_in_run("joint_attention", backend, compiled=True) == expected
        assert kernel_selection.as_in_run("joint_attention", backend, compiled=False) is call


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what is said without a GPU")
@pytest.mark.parametrize("name", ["triton", "flash", "cudnn"])
def test_a_backend_that_is_not_there_is_refused(name):
    with pytest.raises(ValueError, match=f"kernels.joint_attention: '{name}' needs an NVIDIA GPU"):
        kernel_selection.check_kernels(KernelsConfig(joint_attention=name), "bf16", small_config().model)


def test_refusals_say_how_to_get_it(monkeypatch):
    def absent():
        raise ImportError

    gpu = torch.device("cuda")
    for head in (8, 16, 96):  # of which Triton can compile none
        expected = f"power of two, at least 32, not {head}; take 'sdpa' or 'cudnn'"
        assert expected in ops.missing("triton", gpu, torch.bfloat16, head)
        assert "triton" not in ops.available("joint_attention", gpu, torch.bfloat16, head)
        with pytest.raises(ValueError, match=f"at least 32, not {head}"):
            ops.joint_attention_triton(*streams((9,), head=head))
    for head in (32, 64):
        assert ops.missing("triton", gpu, torch.bfloat16, head) == ""
    with monkeypatch.context() as old:
        old.setattr(torch.cuda, "is_available", lambda: True)
        old.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
        assert "from Ampere" in ops.missing("triton", gpu, torch.bfloat16)

    monkeypatch.setattr(ops, "flash_function", absent)
    assert "pip install flash-attn" in ops.missing("flash", gpu, torch.bfloat16)
    assert "float32" in ops.missing("flash", gpu, torch.float32)
    assert ops.missing("triton", gpu, torch.float32) == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "no table of"),
        ('{"rows": [{"op": "softmax", "backend": "triton"}]}', "softmax by triton is not known"),
        ('{"rows": [{"op": "swiglu", "backend": "triton"}]}', "no table of"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, content, message):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        kernel_selection.check_kernels(KernelsConfig(benchmark_file=str(path)), "bf16", small_config().model)
    with pytest.raises(FileNotFoundError, match=r"bench\.py kernels"):
        kernel_selection.check_kernels(
            KernelsConfig(benchmark_file=str(tmp_path / "none.json")), "bf16", small_config().model
        )
