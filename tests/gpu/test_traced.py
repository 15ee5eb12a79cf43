"""torch.compile looks into the operators of the Triton kernels: it sees their launches, and what each of them writes.

On fake CUDA tensors, without Triton's interpreter, which nothing can look into.
"""

import pytest

from tests.gpu import fake_cuda

pytestmark = pytest.mark.slow

# What a kernel only reads is not copied. `sums` and `arrived` are the memory that programs share.
WRITTEN = {
    "_forward": [
        {"y", "mean", "rstd"},  # of the norm
        {"out_x", "out_c", "lse"},  # of the attention
        {"new"},
        {"new", "y", "mean", "rstd"},
        {"y"},  # of SwiGLU
    ],
    "_rotate": [{"rotated"}],
    "_inner": [{"delta"}],
    "_backward": [
        {"dx", "sums", "dshift", "dscale", "arrived"},
        {"dbranch", "sums", "dgate", "arrived"},
        {"dab"},
    ],
    "_backward_norm": [{"dx", "dbranch", "sums", "dgate", "dshift", "dscale", "arrived"}],
    "_backward_queries": [{"dqkv_x", "dqkv_c", "dweight"}],
    "_backward_keys": [{"dqkv_x", "dqkv_c", "dweight"}],
}


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    return fake_cuda.run("tests.gpu.traced", tmp_path_factory.mktemp("traced"))


@pytest.fixture
def graphs(traced):
    """Forward and backward of a block, for the first length of the texts and for all others."""
    return traced["graphs"]


def test_no_operator_is_opaque(graphs):
    assert len(graphs) == 4
    for graph in graphs:
        assert [name for name in graph["operations"] if "audiox_trainer" in name] == []
    # Two norms, an MLP and a residual for each stream; forward two for the attention, backward four.
    assert [len(graph["launches"]) for graph in graphs] == [10, 12] * 2


def test_each_launch_writes_its_outputs_alone(graphs):
    launches = [launch for graph in graphs for launch in graph["launches"]]
    for launch in launches:
        assert set(launch["written"]) in WRITTEN[launch["kernel"]], launch
    assert {launch["kernel"] for launch in launches} == set(WRITTEN)


def test_no_fraction_is_passed_in_double_precision(graphs):
    """Compiled code passes what is no constant as a double, and a kernel then computes in it."""
    assert [launch for graph in graphs for launch in graph["launches"] if launch["fractions"]] == []


def test_swiglus_output_is_computed_again_and_no_product_is(traced):
    """With `recompute_swiglu` the forward pass keeps none, and the backward pass launches SwiGLU's kernel again."""
    stored, again = traced["graphs"][:2], traced["recomputed"]
    assert [stored[0]["hidden"], again[0]["hidden"]] == [2, 0]
    assert len(again[1]["launches"]) == len(stored[1]["launches"]) + 2
    for before, after in zip(stored, again, strict=True):
        assert before["operations"].count("aten.mm.default") == after["operations"].count("aten.mm.default") > 0


def test_with_8_bits_by_row_a_block_compiles_as_a_whole(traced):
    forward, backward = traced["fp8"]
    for graph, products in ((forward, 6), (backward, 6)):
        assert [name for name in graph["operations"] if "audiox_trainer" in name] == []
        assert graph["operations"].count("aten._scaled_mm.default") == products
    launches = [launch["kernel"] for launch in forward["launches"]]
    assert launches.count("_norm_rows") == 4 and launches.count("_swiglu_rows") == 2
    for launch in forward["launches"] + backward["launches"]:
        assert launch["fractions"] == [] and not {"x", "ab", "dy", "shift", "scale"} & set(launch["written"])


def test_torch_finds_the_kernels_of_each_operator(traced):
    """It keeps compiled code under their sources: with others it compiles again."""
    found = {name.removeprefix("audiox_trainer::"): set(kernels) for name, kernels in traced["kernels"].items()}
    assert found.pop("joint_attention") == {"_rotate", "_forward"}
    assert found.pop("joint_attention_backward") == {"_rotate", "_inner", "_backward_queries", "_backward_keys"}
    assert found.pop("gated_residual_norm_backward") == {"_backward_norm"}
    assert found.pop("norm_rows") == {"_norm_rows"} and found.pop("swiglu_rows") == {"_swiglu_rows"}
    assert found == {name: {"_backward" if "backward" in name else "_forward"} for name in found}
