"""Each operation of a transformer block at a model's shapes, ready to be called, timed and compared."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels.joint_attention import StreamInput
from ..models.config import ModelConfig


@dataclass(frozen=True)
class Shape:
    """Sizes that settle how fast an operation is."""

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
    def of(cls, model: ModelConfig, batch: int) -> "Shape":
        """Of a model's blocks with full texts."""
        backbone, frames = model.backbone, model.codec.frames
        condition = model.video.tokens + frames + model.text.max_tokens
        head = backbone.width // backbone.heads
        return cls(batch, frames, condition, backbone.heads, head, backbone.mlp_hidden)

    def facts(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class Case:
    """One operation's inputs, and the least that any implementation of it has to read, write and multiply."""

    inputs: tuple[Tensor, ...]  # those with gradients
    call: Callable[..., Any]  # (implementation, *inputs) -> its outputs
    forward_bytes: int
    backward_bytes: int
    forward_flops: int = 0
    backward_flops: int = 0

    def forward(self, implementation: Callable[..., Any]) -> tuple[Tensor, ...]:
        out = self.call(implementation, *self.inputs)
        return out if isinstance(out, tuple) else (out,)

    def timed(self, implementation: Callable[..., Any], backward: bool) -> Callable[[], None]:
        """A call to take the time of: forward alone, without what a backward pass needs, or backward alone."""
        if not backward:

            def forward() -> None:
                with torch.no_grad():
                    self.forward(implementation)

            return forward
        outputs = self.forward(implementation)
        gradients = [torch.randn_like(out) for out in outputs]

        def back() -> None:
            torch.autograd.grad(outputs, self.inputs, gradients, retain_graph=True)

        return back


def cases(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, Case]:
    """By operation, on random numbers from a fixed seed. Texts have lengths of their own, as in training."""
    generator = torch.Generator().manual_seed(0)
    B, L, W, size = shape.batch, shape.latent, shape.width, dtype.itemsize
    tokens = B * L * W * size  # bytes of one (B, L, W)

    def normal(*sizes: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(sizes, generator=generator).to(device, kind).requires_grad_()

    def modulation() -> Tensor:
        return normal(B, W, kind=torch.float32)

    x, branch = normal(B, L, W), normal(B, L, W)
    ab = normal(B, L, 2 * shape.hidden)
    wide = ab.numel() * size
    rows = {
        "layer_norm_modulate": Case((x, modulation(), modulation()), _plain, 2 * tokens, 3 * tokens),
        "gated_residual": Case((x, branch, modulation()), _plain, 3 * tokens, 3 * tokens),
        "gated_residual_layer_norm_modulate": Case(
            (x, branch, modulation(), modulation(), modulation()), _plain, 4 * tokens, 6 * tokens
        ),
        "swiglu": Case((ab,), _plain, wide * 3 // 2, wide * 5 // 2),
    }
    return {"joint_attention": _attention(shape, device, dtype, generator)} | rows


def _plain(implementation: Callable[..., Any], *inputs: Tensor) -> Any:
    return implementation(*inputs)


def _attention(shape: Shape, device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> Case:
    B, H, D = shape.batch, shape.heads, shape.head_width
    lengths = torch.randint(shape.condition // 2, shape.condition + 1, (B,), generator=generator)
    inputs: list[Tensor] = []
    tables: list[tuple[Tensor, Tensor]] = []
    for n in (shape.latent, shape.condition):
        qkv = torch.randn((B, n, 3, H, D), generator=generator)
        angles = torch.randn((n, D // 2), generator=generator)
        inputs += [t.to(device, dtype).requires_grad_() for t in (qkv, torch.ones(D), torch.ones(D))]
        tables.append((angles.cos().to(device), angles.sin().to(device)))
    on_device = lengths.to(device)

    def call(implementation: Callable[..., Any], *given: Tensor) -> Any:
        streams = [StreamInput(given[3 * i], given[3 * i + 1], given[3 * i + 2], *tables[i]) for i in range(2)]
        return implementation(*streams, on_device)

    # A sample's latents and the conditions within its length attend to each other; QKV is read, the outputs written.
    pairs = int(((shape.latent + lengths) ** 2).sum())
    packed = B * (shape.latent + shape.condition) * 3 * H * D * dtype.itemsize
    return Case(tuple(inputs), call, packed * 4 // 3, packed * 8 // 3, 4 * pairs * H * D, 10 * pairs * H * D)
