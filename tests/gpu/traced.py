"""What torch.compile makes of a block's Triton kernels, on fake CUDA tensors: the graphs of forward and backward.

Arguments: the library of fake_cuda.py, and a file that gets the names of each graph's operations, its launches and how
many of its outputs are as wide as a hidden layer, and by operator the kernels that torch knows to be in it.
"""

import os
import sys
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

from tests.gpu import fake_cuda

if __name__ == "__main__":
    fake_cuda.load(Path(sys.argv[1]))  # before torch is imported

import json
from typing import Any
from unittest import mock

import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from torch._library.triton import get_triton_kernels_for_op
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner

from audiox_trainer.kernels.ops import BACKENDS, resolve
from audiox_trainer.models.blocks import JointBlock, recompute_swiglu
from audiox_trainer.trainer.engine.fp8 import use_rows
from tests.kernels.launches import Driver

OPERATORS = [
    f"audiox_trainer::{name}{way}"
    for name in ("layer_norm_modulate", "gated_residual", "gated_residual_norm", "swiglu", "joint_attention")
    for way in ("", "_backward")
] + ["audiox_trainer::norm_rows", "audiox_trainer::swiglu_rows"]
WIDTH, HEADS, HIDDEN = 128, 2, 256
CONDITIONS = (70, 100, 130)  # tokens: the first length, for which code is compiled, and others, which share theirs


def describe(node: torch.fx.Node) -> dict[str, Any]:
    """A launch: its kernel, the tensors that it writes, and its arguments that are fractions and no constants."""
    kernel = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
    kernel = kernel.fn if isinstance(kernel, Autotuner) else kernel  # a launch that says how many warps
    constants = kernel_side_table.get_constant_args(node.kwargs["constant_args_idx"])
    declared = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    fractions = [name for name, value in constants.items() if isinstance(value, float) and name not in declared]
    return {"kernel": kernel.fn.__name__, "written": node.kwargs["tensors_to_clone"], "fractions": fractions}


def main(out: Path) -> None:
    graphs: list[dict[str, Any]] = []

    def record(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        names, launches = [], []
        for node in graph.graph.nodes:
            if node.op != "call_function":
                continue
            names.append(str(node.target))
            if "triton_kernel_wrapper_functional" in str(node.target):
                launches.append(describe(node))
        outputs = [x for x in graph.graph.output_node().args[0] if x is not None and x.op != "placeholder"]
        widths = [x.meta["val"].shape[-1] for x in outputs if getattr(x.meta["val"], "ndim", 0)]
        hidden = sum(isinstance(width, int) and width == HIDDEN for width in widths)
        graphs.append({"operations": names, "launches": launches, "hidden": hidden})
        return make_boxed_func(graph.forward)

    driver.set_active(Driver(90))
    no_exchange = {"_exchange_device": lambda _: 0, "_maybe_exchange_device": lambda _: 0}
    with FakeTensorMode(allow_non_fake_inputs=True), mock.patch.multiple(torch.cuda, **no_exchange):
        with torch.device("cuda"):
            block = JointBlock(WIDTH, HEADS, HIDDEN)
            x, time = torch.empty(2, 9, WIDTH, requires_grad=True), torch.empty(2, WIDTH)
            conditions = [torch.empty(2, n, WIDTH) for n in CONDITIONS]
            ropes = {n: [torch.empty(n, WIDTH // HEADS // 2)] * 2 for n in (9, *CONDITIONS)}
            length = torch.empty(2, dtype=torch.int32)
        ops = resolve(dict.fromkeys(BACKENDS, "triton"))
        for module in block.modules():
            if hasattr(module, "ops"):
                module.ops = ops
        compiled = torch.compile(block, backend=aot_autograd(fw_compiler=record, bw_compiler=record), fullgraph=True)
        for c in conditions:
            y = compiled(x, c, time, ropes[9], ropes[c.shape[1]], length)
            (y[0].sum() + y[1].sum()).backward()
        first, graphs[:] = list(graphs), []
        recompute_swiglu(block, True)
        backend = aot_autograd(fw_compiler=record, bw_compiler=record, partition_fn=min_cut_rematerialization_partition)
        compiled = torch.compile(block, backend=backend, fullgraph=True)
        y = compiled(x, conditions[0], time, ropes[9], ropes[CONDITIONS[0]], length)
        (y[0].sum() + y[1].sum()).backward()
        recomputed, graphs[:] = list(graphs), []
    with FakeTensorMode(allow_non_fake_inputs=True), mock.patch.multiple(torch.cuda, **no_exchange):
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            block = JointBlock(WIDTH, HEADS, HIDDEN)
            x, c, time = (torch.empty(*shape, WIDTH) for shape in ((2, 9), (2, 70), (2,)))
            ropes = {n: [torch.empty(n, WIDTH // HEADS // 2, dtype=torch.float32)] * 2 for n in (9, 70)}
            length = torch.empty(2, dtype=torch.int32)
        for stream in (block.latent, block.condition):
            stream.ops = stream.mlp.ops = ops
            use_rows(stream)
        block.ops = ops
        compiled = torch.compile(block, backend=aot_autograd(fw_compiler=record, bw_compiler=record), fullgraph=True)
        y = compiled(x.requires_grad_(), c, time, ropes[9], ropes[70], length)
        (y[0].sum() + y[1].sum()).backward()
    found = {name: [kernel.fn.__name__ for kernel in get_triton_kernels_for_op(name)] for name in OPERATORS}
    out.write_text(json.dumps({"graphs": first, "recomputed": recomputed, "fp8": graphs, "kernels": found}))


if __name__ == "__main__":
    main(Path(sys.argv[2]))
