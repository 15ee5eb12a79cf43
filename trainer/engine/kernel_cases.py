"""Each operation of a transformer block at a model's shapes, to be called, timed and compared."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...kernels.joint_attention import StreamInput
from ...models.config import ModelConfig

UNCACHED_BYTES = 2**27  # read before any are read again: a GPU caches less than half as much (H100: 50 MB)


@dataclass(frozen=True)
class BlockShape:
    """The sizes that determine how fast an operation is."""

    batch: int
    latent: int  # tokens
    condition: int  # tokens, padded
    heads: int
    head_width: int
    hidden: int  # of the gated MLP

    @property
    def width(self) -> int:
        return self.heads * self.head_width

    @classmethod
    def from_model(cls, model: ModelConfig, batch: int) -> "BlockShape":
        """The shape of a model's blocks with full texts."""
        backbone, frames = model.backbone, model.codec.frames
        condition = model.video_tokens + frames + model.text.max_tokens
        head = backbone.width // backbone.heads
        return cls(batch, frames, condition, backbone.heads, head, backbone.mlp_hidden)


@dataclass(frozen=True)
class KernelCase:
    """One operation's inputs, and the least that any implementation has to read, write and multiply."""

    inputs: tuple[Tensor, ...]  # those with gradients
    call: Callable[..., Any]  # (implementation, *inputs) -> its outputs
    forward_bytes: int
    backward_bytes: int
    forward_flops: int = 0
    backward_flops: int = 0
    real: tuple[Tensor | bool, ...] = ()  # which of each output's tokens (B, N, 1) are no padding; (): all

    def forward(self, implementation: Callable[..., Any]) -> tuple[Tensor, ...]:
        out = self.call(implementation, *self.inputs)
        return out if isinstance(out, tuple) else (out,)

    def results(self, implementation: Callable[..., Any]) -> list[Tensor]:
        """Outputs without padding, and the gradients of the inputs when the gradient of each output is that output."""
        outputs = self.forward(implementation)
        return [
            *self._without_padding(outputs),
            *torch.autograd.grad(outputs, self.inputs, self._without_padding(outputs), retain_graph=True),
        ]

    def _without_padding(self, outputs: tuple[Tensor, ...]) -> list[Tensor]:
        """The outputs detached, with zeros at padding: nobody reads it, and no gradient comes from it."""
        real = self.real or (True,) * len(outputs)
        return [
            out.detach().clone() if isinstance(mask, bool) else torch.where(mask, out.detach(), 0)
            for out, mask in zip(outputs, real, strict=True)
        ]

    def timed_call(self, implementation: Callable[..., Any], backward: bool, uncached: int = 0) -> Callable[[], None]:
        """A call to be timed: forward alone, without what a backward pass needs, or backward alone. Calls alternate
        between as many copies of the inputs as it takes to read `uncached` bytes."""
        copies = min(8, max(1, math.ceil(uncached / self.forward_bytes)))
        others = [replace(self, inputs=tuple(_copy(x) for x in self.inputs)) for _ in range(copies - 1)]
        calls = [case._call(implementation, backward) for case in (self, *others)]
        if not others:
            return calls[0]
        turns = itertools.cycle(calls)
        return lambda: next(turns)()

    def _call(self, implementation: Callable[..., Any], backward: bool) -> Callable[[], None]:
        if not backward:

            def forward() -> None:
                with torch.no_grad():
                    self.forward(implementation)

            return forward
        outputs = self.forward(implementation)
        gradients = self._without_padding(outputs)

        def back() -> None:
            torch.autograd.grad(outputs, self.inputs, gradients, retain_graph=True)

        return back


def _copy(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def kernel_cases(shape: BlockShape, device: torch.device, dtype: torch.dtype) -> dict[str, KernelCase]:
    """The cases by operation, on random numbers from a fixed seed. Each holds the calls that one block makes: one per
    stream, except for the joint attention. Texts have different lengths, as in training."""
    generator = torch.Generator().manual_seed(0)
    B, W, size = shape.batch, shape.width, dtype.itemsize
    both = shape.latent, shape.condition
    tokens = B * sum(both) * W * size  # bytes of both streams' (B, N, W)

    def normal(*sizes: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(sizes, generator=generator).to(device, kind).requires_grad_()

    def modulation() -> Tensor:
        return normal(B, W, kind=torch.float32)

    def case(rows: int, modulations: int, forward: int, backward: int) -> KernelCase:
        """A case of so many (B, N, W) and (B, W) inputs per stream."""
        inputs = [[*(normal(B, n, W) for _ in range(rows)), *(modulation() for _ in range(modulations))] for n in both]
        return KernelCase((*inputs[0], *inputs[1]), _both_streams, forward, backward)

    wide = B * sum(both) * 2 * shape.hidden * size
    return {
        "joint_attention": _attention(shape, device, dtype, generator),
        "layer_norm_modulate": case(1, 2, 2 * tokens, 3 * tokens),
        "gated_residual": case(2, 1, 3 * tokens, 3 * tokens),
        "gated_residual_layer_norm_modulate": case(2, 3, 4 * tokens, 6 * tokens),
        "swiglu": KernelCase(
            tuple(normal(B, n, 2 * shape.hidden) for n in both), _both_streams, wide * 3 // 2, wide * 5 // 2
        ),
    }


def _both_streams(implementation: Callable[..., Any], *inputs: Tensor) -> tuple[Tensor, ...]:
    """The outputs for the latent stream's inputs, then for the condition stream's."""
    half = len(inputs) // 2
    outputs = [implementation(*inputs[:half]), implementation(*inputs[half:])]
    return tuple(y for out in outputs for y in (out if isinstance(out, tuple) else (out,)))


def condition_lengths(shape: BlockShape, device: torch.device) -> Tensor:
    """The number of each sample's condition tokens (B,) that are no padding, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(shape.condition // 2, shape.condition + 1, (shape.batch,), generator=generator).to(device)


def _attention(shape: BlockShape, device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> KernelCase:
    B, H, D = shape.batch, shape.heads, shape.head_width
    used = condition_lengths(shape, device)
    inputs: list[Tensor] = []
    tables: list[tuple[Tensor, Tensor]] = []
    for n in (shape.latent, shape.condition):
        qkv = torch.randn((B, n, 3, H, D), generator=generator)
        angles = torch.randn((n, D // 2), generator=generator)
        inputs += [t.to(device, dtype).requires_grad_() for t in (qkv, torch.ones(D), torch.ones(D))]
        tables.append((angles.cos().to(device), angles.sin().to(device)))

    def call(implementation: Callable[..., Any], *inputs: Tensor) -> Any:
        streams = [StreamInput(inputs[3 * i], inputs[3 * i + 1], inputs[3 * i + 2], *tables[i]) for i in range(2)]
        return implementation(*streams, used)

    # A sample's latents and the conditions within its length attend to each other; QKV is read, the outputs written.
    pairs = int(((shape.latent + used) ** 2).sum())
    real = True, (torch.arange(shape.condition, device=device) < used[:, None])[:, :, None]
    packed = B * (shape.latent + shape.condition) * 3 * H * D * dtype.itemsize
    return KernelCase(
        tuple(inputs), call, packed * 4 // 3, packed * 8 // 3, 4 * pairs * H * D, 10 * pairs * H * D, real
    )
