"""The memory that a pass through a model needs, found by a pass through one whose tensors have shapes and no numbers.

The code that trains is the code that runs here, so the count follows it. B samples per micro-batch.
"""

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode

from ...kernels.ops import OPS, REFERENCE, KernelsConfig, Ops, resolve
from ...models.blocks import recompute_swiglu
from ...models.config import AnyModelConfig
from ...models.discriminator import trunk_options
from ...models.int8 import int8_tensors
from ...models.lora import LoraConfig, add_adapters
from ...models.networks import build_discriminator, build_network
from ..core.distill_config import DistillConfig
from ..core.update_cycle import Phase
from ..losses.flow_matching import flow_matching_loss
from .passes import Gradient, Pass, distillation_passes, matching_passes, regression_passes


@dataclass(frozen=True)
class Activations:
    """Bytes of a micro-batch, without weights, their gradients and the inputs."""

    saved: int  # from the forward pass to the backward pass
    peak: int  # at the worst moment of both


class Allocations(TorchDispatchMode):
    """Counts bytes of memory that operations inside it allocate and free. Earlier allocations do not count. Operations
    take and return tensors, and lists of them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()  # addresses of memory that is allocated

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._note((*args, *kwargs.values()), count=False)
        out = func(*args, **kwargs)
        self._note((out,), count=True)
        return out

    def _note(self, values: Sequence[Any], count: bool) -> None:
        for value in values:
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self._known:
                    size = storage.nbytes() if count else 0
                    self._known.add(storage._cdata)
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._freed, storage._cdata, size)
            elif isinstance(value, list | tuple):
                self._note(value, count)

    def _freed(self, address: int, size: int) -> None:
        self._known.remove(address)
        self.now -= size


class _FusedAttention(torch.autograd.Function):
    """An attention that keeps what a GPU's fused kernels keep: its inputs, its output and one number per query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, logsumexp = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class _MetaDevice(DeviceContext):
    """`torch.device("meta")` that replaces torch's attention, which would not choose a GPU's kernel for tensors without
    memory. Where a backward pass computes blocks again, checkpointing enters no other modes than devices."""

    def __init__(self) -> None:
        super().__init__(torch.device("meta"))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*args[:3])
        return super().__torch_function__(func, types, args, kwargs)


class SimulatedModel:
    """One architecture in one precision: on a GPU with the operations that a configuration names, or on a CPU.

    Blocks run uncompiled; compiled ones keep at most as much.
    """

    def __init__(
        self,
        config: AnyModelConfig,
        precision: str,
        kernels: KernelsConfig | None,
        tokens: int,
        trunk: tuple[int, int] = (1, 1),
        lora: LoraConfig | None = None,
        recompute: bool = False,
    ) -> None:
        """`kernels` None means a CPU; `tokens` is the length of the texts; `trunk` are the blocks before the
        discriminator, and its heads; `lora` are the adapters that are trained, None for everything; `recompute` is
        `training.recompute_swiglu`, which does not apply where blocks are checkpointed."""
        self.config, self.tokens, self.trunk, self.recompute = config, tokens, trunk, recompute
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.kernels = kernels
        self.fake = FakeTensorMode(allow_non_fake_inputs=True) if kernels is None else None
        with self._without_memory():
            ops = REFERENCE if kernels is None else _ops(kernels)
            trained = build_network(config).use(ops)
            if lora:
                add_adapters(trained, lora)
            self.trained = _cast(trained, self.dtype)
            self.frozen = _cast(build_network(config).use(ops), self.dtype).requires_grad_(False)
            self.head = _cast(build_discriminator(config, *trunk), self.dtype).requires_grad_(False)
        if self.fake is None:
            for model in (self.trained, self.frozen):
                model.to("meta")  # its constants too
        for parameter in self.trained.parameters():  # gradients are counted with the states: drop each once it is whole
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop)

    def sizes(self, trained: bool = True) -> list[int]:
        """Elements of each parameter that is trained, or of each that is not."""
        return [parameter.numel() for parameter in self.trained.parameters() if parameter.requires_grad == trained]

    def int8_bytes(self) -> int:
        """Of the weights in 8 bits and their scales."""
        return sum(tensor.nbytes for tensor in int8_tensors(self.trained))

    def training(self, batch: int, checkpointing: bool) -> Activations:
        """A model's own update: forward, flow-matching loss, backward."""

        def forward(z: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
            v = self.trained(z, t, *conditions)
            return flow_matching_loss(v, z.float(), z.float()).mean()

        return self._run(batch, checkpointing, forward)

    def student(self, config: DistillConfig, batch: int, checkpointing: bool) -> Activations:
        """A student's update in a distillation: its own pass, then the passes of the others at its estimate."""
        settings = config.distillation
        matching = matching_passes(config) if settings.matching_weight else ()
        regression = regression_passes(config, 0, paired=False) if settings.regression_weight else ()
        trunks = [one for one in distillation_passes(config, Phase.STUDENT, 0) if one.blocks]

        def forward(z: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
            def ask(one: Pass) -> Tensor:
                with torch.set_grad_enabled(one.gradient is not Gradient.NONE):
                    inputs = [leaf.to(self.dtype), t, *conditions]
                    if one.samples > 1:
                        inputs = [torch.cat([x] * one.samples) for x in inputs]
                    options = trunk_options(one.blocks, self.trunk[1]) if one.blocks else {}
                    out: Tensor = self.frozen(*inputs, **options)
                    return out[:batch]

            estimate = self.trained(z, t, *conditions).float()
            leaf = estimate.detach().requires_grad_()
            direction = torch.zeros_like(leaf)
            if matching:
                velocities = [ask(one).float() for one in matching]
                direction = velocities[1] - velocities[0]
                if direction.requires_grad:
                    (direction,) = torch.autograd.grad(direction.square().mean(), leaf)
            for trunk in trunks:
                (more,) = torch.autograd.grad(self.head(ask(trunk)).float().mean(), leaf)
                direction = direction + more
            for one in regression:
                ask(one)
            return (estimate * direction.detach()).sum()

        return self._run(batch, checkpointing, forward)

    def _run(self, batch: int, checkpointing: bool, forward: Callable[..., Tensor]) -> Activations:
        for model in (self.trained, self.frozen):
            model.backbone.checkpointing = checkpointing
            recompute_swiglu(model, self.recompute and not checkpointing)
        with self._without_memory():
            inputs = self._inputs(batch)
            with Allocations() as memory:
                loss = forward(*inputs)
                kept = memory.now
                loss.backward()
            return Activations(kept, memory.peak)

    def _inputs(self, n: int) -> list[Tensor]:
        """z, t, video, audio, text, text_length."""
        codec, text = self.config.codec, self.config.text
        shapes = [
            (n, self.config.latent_frames, codec.latent_channels),
            (n, self.config.video_rows, self.config.video_dim),
            (n, codec.frames, codec.latent_channels),
        ]
        z, clip, audio = (torch.empty(shape, dtype=self.dtype) for shape in shapes)
        words = torch.empty(n, self.tokens, text.dim, dtype=self.dtype)
        return [z, torch.empty(n), clip, audio, words, torch.empty(n, dtype=torch.int64)]

    def _without_memory(self) -> ExitStack:
        """A context in which tensors have no memory."""
        stack = ExitStack()
        modes: list[AbstractContextManager[Any]] = [_MetaDevice()]
        if self.fake is not None:
            modes = [self.fake, torch.device("cpu")]
        for mode in modes:
            stack.enter_context(mode)
        return stack


def _ops(kernels: KernelsConfig) -> Ops:
    """A GPU's operations. Those of libraries that may not be installed keep what torch's own attention keeps."""
    stand_ins = {"auto": "triton", "flash": "sdpa", "cudnn": "sdpa"}
    names = {op: getattr(kernels, op) for op in OPS}
    return resolve({op: stand_ins.get(name, name) for op, name in names.items()})


def _cast(model: Any, dtype: torch.dtype) -> Any:
    """`model.to(dtype)`, also for fake weights, which it cannot replace."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad))
    return model


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
