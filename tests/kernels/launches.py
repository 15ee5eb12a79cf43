"""Launches of the Triton kernels without a GPU: their own host functions are called, on tensors without memory, and
each launch is compiled instead, with the argument types, specialization, constants and warps of a real one."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch._library.triton import set_wrap_triton_enabled
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from audiox_trainer.kernels import adaln, fp8_linear, gated_residual, joint_attention, swiglu
from audiox_trainer.trainer.engine.kernel_cases import BlockShape

FP8 = 89  # the first compute capability with 8-bit floats


class Driver:
    """The driver calls that Triton makes before it compiles. One device per architecture, since it keeps one kernel
    each."""

    def __init__(self, sm: int) -> None:
        self.sm = sm

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.sm, 32)

    def get_current_device(self) -> int:
        return self.sm

    def get_current_stream(self, device: int) -> int:
        return 0


Seen = Callable[[Any, Any, dict[str, Any]], None]  # of a launch: kernel, what it was compiled to, arguments by name


@contextlib.contextmanager
def compiled_only(sm: int, seen: Seen = lambda *_: None) -> Iterator[None]:
    """A context in which launches are compiled for a GPU of this compute capability, and not made."""
    original = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> Any:
        kernel = original(self, *args, grid=grid, warmup=True, **constants)
        seen(self, kernel, dict(zip(self.arg_names, args, strict=False)) | constants)
        return kernel

    driver.set_active(Driver(sm))
    with (
        set_wrap_triton_enabled(False),  # as in an operation: otherwise a launch on tensors without memory does nothing
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(joint_attention, "capability", lambda _: divmod(sm, 10)),
    ):
        yield


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def launch_block(shape: BlockShape, sm: int) -> None:
    """Each host function of the kernels, on the latent and on the condition stream, in bfloat16."""
    batch, width, hidden = shape.batch, shape.width, shape.hidden
    for n in (shape.latent, shape.condition):
        x, both = empty(batch, n, width), empty(batch, n, 2 * hidden)
        shift, scale, gate, *_ = empty(batch, 6 * width, dtype=torch.float32).chunk(6, dim=-1)  # as in a block
        mean, rstd = (empty(batch, n, dtype=torch.float32) for _ in range(2))
        launch_rows(x, (shift, scale, gate), (mean, rstd), both, empty(batch, n, hidden))
        if sm >= FP8:
            fp8_linear._norm_rows_triton.host(x, shift, scale)
            fp8_linear._swiglu_rows_triton.host(both)
    launch_attention(attention_inputs(shape))


def launch_rows(
    x: torch.Tensor,
    modulation: tuple[torch.Tensor, ...],
    statistics: tuple[torch.Tensor, ...],
    ab: torch.Tensor,
    dy: torch.Tensor,
) -> None:
    """Each host function of the kernels that take rows, forward and backward; x stands for every gradient (B, L, W).
    Shift, scale and gate (B, W), mean and 1/deviation (B, L), SwiGLU's input (B, L, 2H), and the gradient of its output
    (B, L, H)."""
    shift, scale, gate = modulation
    adaln._layer_norm_modulate.host(x, shift, scale)
    adaln._layer_norm_modulate_backward.host(x, x, scale, *statistics)
    gated_residual._gated_residual.host(x, x, gate)
    gated_residual._gated_residual_backward.host(x, x, gate)
    gated_residual._gated_residual_norm.host(x, x, gate, shift, scale)
    gated_residual._gated_residual_norm_backward.host(x, x, gate, scale, *statistics, x, x)
    swiglu._swiglu.host(ab)
    swiglu._swiglu_backward.host(ab, dy)


def launch_attention(inputs: list[torch.Tensor]) -> None:
    """The host functions of the joint attention, forward and backward; `inputs` as of `attention_inputs`."""
    x, c, lse = joint_attention._joint_attention.host(*inputs)
    joint_attention._joint_attention_backward.host(*inputs, x, c, lse, x, c)


def attention_inputs(shape: BlockShape) -> list[torch.Tensor]:
    """QKV, norms and rotation of both streams, and the lengths of the conditions."""
    inputs, head = list[torch.Tensor](), shape.head_width
    for n in (shape.latent, shape.condition):
        tables = [empty(n, head // 2, dtype=torch.float32) for _ in range(2)]
        inputs += [empty(shape.batch, n, 3, shape.heads, head), empty(head), empty(head), *tables]
    return [*inputs, empty(shape.batch, dtype=torch.int32)]
