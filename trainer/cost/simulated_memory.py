"""What a pass through a model keeps in memory, found by passing through one whose tensors have shapes and no numbers.

The code that trains is the code that is run here, so the count follows it. B samples a micro-batch.
"""

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...kernels.ops import OPS, REFERENCE, KernelsConfig, Ops, resolve
from ...models.audiox import AudioX
from ...models.config import ModelConfig
from ...models.discriminator import DiscriminatorHead
from ..core.distill_config import DistillConfig
from ..losses.flow_matching import flow_matching_loss


@dataclass(frozen=True)
class Activations:
    """Bytes of a micro-batch, without weights, their gradients and what the pass was given."""

    kept: int  # from the forward to the backward pass
    peak: int  # at the worst moment of both


class Allocations(TorchDispatchMode):
    """Counts bytes of memory that operations inside it take, and give back; what was there before does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()  # addresses of memory that is there

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._look((args, kwargs), count=False)
        out = func(*args, **(kwargs or {}))
        self._look(out, count=True)
        return out

    def _look(self, tree: Any, count: bool) -> None:
        for tensor in tree_leaves(tree):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    size = storage.nbytes() if count else 0
                    self._known.add(storage._cdata)
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, storage._cdata, size)

    def _gone(self, address: int, size: int) -> None:
        self._known.remove(address)
        self.now -= size


class _Fused(torch.autograd.Function):
    """An attention that keeps what the fused kernels of a GPU keep: its inputs, its output and a number a query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, logsumexp = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class _FusedAttention(TorchFunctionMode):
    """torch would not choose a GPU's kernel for tensors that lie nowhere."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Fused.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class Simulated:
    """One architecture in one precision: as on a GPU with the operations that a configuration names, or as on a CPU.

    Blocks run as they are written; compiled ones keep at most as much.
    """

    def __init__(self, config: ModelConfig, precision: str, kernels: KernelsConfig | None, tokens: int) -> None:
        """`kernels` None is a CPU; `tokens` is the length of the texts."""
        self.config, self.tokens = config, tokens
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.kernels = kernels
        self.fake = FakeTensorMode(allow_non_fake_inputs=True) if kernels is None else None
        with self._nowhere():
            ops = REFERENCE if kernels is None else _ops(kernels)
            self.trained = _cast(AudioX(config).use(ops), self.dtype)
            self.frozen = _cast(AudioX(config).use(ops), self.dtype).requires_grad_(False)
            self.head = _cast(DiscriminatorHead(config.backbone.width), self.dtype).requires_grad_(False)
        for parameter in self.trained.parameters():  # a gradient belongs to the states, and leaves when it is whole
            parameter.register_post_accumulate_grad_hook(_drop)

    def sizes(self) -> list[int]:
        return [parameter.numel() for parameter in self.trained.parameters()]

    def training(self, batch: int, checkpointing: bool) -> Activations:
        """A model's own update: forward, flow-matching loss, backward."""

        def forward(z: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
            v = self.trained(z, t, *conditions)
            return flow_matching_loss(v, z.float(), z.float()).mean()

        return self._passed(batch, checkpointing, forward)

    def student(self, config: DistillConfig, batch: int, checkpointing: bool) -> Activations:
        """A student's update in a distillation: what `distill.Distillation` does, with models of this architecture."""
        settings = config.distillation

        def forward(z: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
            estimate = self.trained(z, t, *conditions).float()
            leaf = estimate.detach().requires_grad_()
            times = 1 if settings.teacher_guidance == 1 else 2
            with torch.set_grad_enabled(settings.loss == "eq10"):
                both = [torch.cat([x] * times) for x in (leaf.to(self.dtype), t, *conditions)]
                teacher = self.frozen(*both)[:batch].float()
            with torch.set_grad_enabled(settings.loss != "dmd"):
                fake = self.frozen(leaf.to(self.dtype), t, *conditions).float()
            direction = fake - teacher
            if direction.requires_grad:
                (direction,) = torch.autograd.grad(direction.square().mean(), leaf)
            if settings.adversarial_weight:
                features = self.frozen(leaf.to(self.dtype), t, *conditions, n_blocks=settings.discriminator_blocks)
                (pulled,) = torch.autograd.grad(self.head(features).float().mean(), leaf)
                direction = direction + pulled
            return (estimate * direction.detach()).sum()

        return self._passed(batch, checkpointing, forward)

    def _passed(self, batch: int, checkpointing: bool, forward: Callable[..., Tensor]) -> Activations:
        self.trained.backbone.checkpointing = self.frozen.backbone.checkpointing = checkpointing
        with self._nowhere():
            given = self._inputs(batch)
            with Allocations() as memory, _FusedAttention() if self.fake is None else ExitStack():
                loss = forward(*given)
                kept = memory.now
                loss.backward()
            return Activations(kept, memory.peak)

    def _inputs(self, n: int) -> list[Tensor]:
        """z, t, video, audio, text, text_length."""
        codec, video, text = self.config.codec, self.config.video, self.config.text
        shapes = [
            (n, codec.frames, codec.latent_channels),
            (n, video.steps, video.dim),
            (n, codec.frames, codec.latent_channels),
        ]
        z, clip, audio = (torch.empty(shape, dtype=self.dtype) for shape in shapes)
        words = torch.empty(n, self.tokens, text.dim, dtype=self.dtype)
        return [z, torch.empty(n), clip, audio, words, torch.empty(n, dtype=torch.int64)]

    def _nowhere(self) -> ExitStack:
        """Where tensors have no memory."""
        stack = ExitStack()
        modes: list[AbstractContextManager[Any]] = [torch.device("meta")]
        if self.fake is not None:
            modes = [self.fake, torch.device("cpu")]
        for mode in modes:
            stack.enter_context(mode)
        return stack


def _ops(kernels: KernelsConfig) -> Ops:
    """The operations of a GPU; those of libraries that may not be here keep what torch's own attention keeps."""
    own = {"auto": "triton", "flash": "sdpa", "cudnn": "sdpa"}
    chosen = {op: getattr(kernels, op) for op in OPS}
    return resolve({op: own.get(name, name) for op, name in chosen.items()})


def _cast(model: Any, dtype: torch.dtype) -> Any:
    """`model.to(dtype)` also where the weights are fake, which it does not know how to replace."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.detach().to(dtype)))
    return model


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
