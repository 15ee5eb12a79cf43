"""Models under DeepSpeed: ZeRO set-up, and the fp32 shards that each rank owns.

Checkpoints, EMA and conversion work on fragments of these shards, so they are the same at every ZeRO stage and for
every number of ranks.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime import compiler as deepspeed_compiler
from torch import Tensor, nn

from ...models.int8 import int8_tensors
from ..core.config import OptimizerConfig, ZeroConfig
from ..core.config_reader import merged
from ..cost.role_bytes import RoleBytes, storage_bytes
from .checksum import checksum, replicated_weights
from .compilation import compiled_apart
from .deepspeed_config import deepspeed_config, frozen_config
from .fragment import Fragment
from .gather_traces import GatherTraces
from .process_group import align_timeouts

MOMENTS = ("exp_avg", "exp_avg_sq")


def _import_muon() -> None:
    """DeepSpeed imports its Muon optimizer with every other, and torch.compile, which it decorates that with, loads
    torch's compiler: each rank would start seconds later. Nothing here uses Muon, so it stays uncompiled."""
    decorate = deepspeed_compiler.compile
    deepspeed_compiler.compile = lambda *_, **__: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        deepspeed_compiler.compile = decorate


_import_muon()


def _gather_with_callers(model: nn.Module) -> None:
    """At stage 3 a weight is gathered when its module is called. Some are of parts of a block that are never called
    themselves: they are gathered with the block. DeepSpeed would notice it at their first use, but not in compiled
    code. A compiled block calls none of its parts, and DeepSpeed's hooks around them, which would break its code up,
    are taken out."""
    for caller in model.modules():
        whole = compiled_apart(caller)
        parts = list(caller.modules())[1:] if whole else caller.children()
        for part in parts:
            if whole or type(part).forward is nn.Module.forward:
                for weight in part.parameters(recurse=False):
                    deepspeed.zero.register_external_parameter(caller, weight)
            if whole:
                part._forward_pre_hooks.clear()
                part._forward_hooks.clear()


class Engine:
    """One trained model under DeepSpeed: backward, step, and access to the shards that its optimizer owns."""

    wants_checksum = False  # of the weights that the next update replaces
    _checksum: Tensor | None = None
    _repeats = False  # inside `repeating`

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerConfig,
        zero: ZeroConfig,
        precision: str,
        micro_batch: int,
        accumulation: int,
        overrides: dict[str, Any],
    ) -> None:
        # What is trained. The other parameters are frozen: they are in the model alone.
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        saved = model.state_dict().keys() - dict(model.named_parameters()).keys()
        # Tensors of the model that are no parameters, as they are before the model is cast.
        self.constants = {
            n: b.detach().to("cpu", torch.float32, copy=True) for n, b in model.named_buffers() if n in saved
        }
        adamw = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=optimizer.lr,
            betas=(optimizer.betas[0], optimizer.betas[1]),
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=not zero.offload_optimizer,
        )
        on_gpu = get_accelerator().device_name() != "cpu"
        settings = deepspeed_config(zero, optimizer.max_grad_norm, precision, micro_batch, accumulation, on_gpu)
        config = merged(settings, overrides)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(model=model, optimizer=adamw, config=config)
        align_timeouts()
        self.module: nn.Module = self.engine.module
        if zero.stage == 3:
            _gather_with_callers(self.module)
        self.traces = GatherTraces(self.module, self.optimizer.parameter_offload) if zero.stage == 3 else None
        self.dtype = torch.bfloat16 if precision == "bf16" and zero.stage > 0 else torch.float32
        self.adamw = adamw
        self.sharded = hasattr(self.optimizer, "optimizer")  # otherwise plain AdamW on replicated fp32 parameters
        self.clip, self.offload = optimizer.max_grad_norm, zero.offload_optimizer
        self.norm = float("nan")  # the last gradient's, where nothing is sharded
        self.autocast = precision == "bf16" and zero.stage == 0
        self._updates = 0
        self._gradient_bytes = 0
        if hasattr(self.optimizer, "check_grad_overflow"):
            self.optimizer.check_grad_overflow = True  # DeepSpeed looks for non-finite gradients in low precision only

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """The model's output."""
        output: Tensor
        if self._repeats:
            with torch.autocast(get_accelerator().device_name(), torch.bfloat16, enabled=self.autocast):
                output = self.module(*inputs, **options)
        else:
            output = self.engine(*inputs, **options)
        return output

    def backward(self, loss: Tensor) -> None:
        """The backward pass of one micro-batch."""
        self.engine.backward(loss)

    def step(self, rate: float) -> bool:
        """To be called after every micro-batch. After the last one of a step the optimizer updates the weights with
        this learning rate.

        Returns whether the weights changed. Where any rank has a non-finite gradient, no rank updates.
        """
        boundary = self.engine.is_gradient_accumulation_boundary()
        if boundary and not self._gradient_bytes:
            self._gradient_bytes = storage_bytes(self._gradients())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        finite = True
        if boundary and self.wants_checksum:
            self._checksum, self.wants_checksum = self.checksum(), False
        if boundary and not self.sharded:
            finite = self._clip_or_drop()
        self.engine.step()
        applied = boundary and finite and bool(self.engine.was_step_applied())
        self._updates += applied
        return applied

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """Inside a `with`, `forward` computes what it does in a step, but DeepSpeed neither sees nor reduces the
        gradients of `torch.autograd.grad`."""
        self._repeats = True
        try:
            yield
        finally:
            self._repeats = False

    def checksum(self) -> Tensor | None:
        """The checksum of the weights that this model computes with, where every rank has all of them."""
        weights = replicated_weights(self.module)
        return checksum(weights) if weights else None

    def take_checksum(self) -> Tensor | None:
        """The checksum from before the last update if that was asked for by `wants_checksum`, otherwise a new one."""
        self.wants_checksum, taken, self._checksum = False, self._checksum, None
        return self.checksum() if taken is None else taken

    def bytes(self, ema: Sequence[Tensor] = (), shared: nn.Module | None = None) -> RoleBytes:
        """Counts the bytes of the model's tensors on this rank, and with offload on its host. Gradients are counted in
        the first update, and weights that are also those of `shared` not at all."""
        optimizer = [t for state in self.adamw.state.values() for t in state.values() if isinstance(t, Tensor)]
        copies = getattr(self.optimizer, "param_buffer_of_bit16_for_cpu_offload_groups", ())
        others = {parameter.data_ptr() for parameter in shared.parameters()} if shared else ()
        own = [t for t in _weights(self.module) if t is not None and t.data_ptr() not in others]
        weights = storage_bytes([*own, *self.shards(), *copies])
        return RoleBytes(weights, self._gradient_bytes, storage_bytes(optimizer), storage_bytes(ema))

    def _gradients(self) -> Iterator[Tensor | None]:
        """Every tensor that holds a gradient between backward and step, at whichever stage."""
        for parameter in self.parameters.values():
            yield parameter.grad
            if not self.offload:  # which leaves there what lies in the bucket that reduced it
                yield getattr(parameter, "grad_accum", None)
        yield from (shard.grad for shard in self.shards())
        yield from getattr(self.optimizer, "accumulated_grads_in_cpu", {}).values()
        yield getattr(self.optimizer, "grad_partitions_flat_buffer", None)
        yield from getattr(self.optimizer, "fp32_groups_gradients_flat", ())
        for group in getattr(self.optimizer, "averaged_gradients", {}).values():
            yield from group or ()

    def _clip_or_drop(self) -> bool:
        """If nothing is sharded: clip the gradients, or drop them if they are not finite, and say whether they
        were. They are averaged over the ranks by now, so every rank sees the same."""
        parameters = list(self.parameters.values())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.norm = float(norm)
        if not math.isfinite(self.norm):
            for parameter in parameters:
                parameter.grad = None  # AdamW passes over it, and over its moments too
            return False
        if self.clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        return True

    def gradient_norm(self) -> float:
        """Norm over all parameters and ranks of the last step's gradient, before clipping."""
        norm = self.engine.get_global_grad_norm() if self.sharded else self.norm
        return float(norm) if norm is not None else float("nan")

    def shards(self) -> list[Tensor]:
        """The fp32 weights that this rank trains: flat tensors, or all parameters where nothing is sharded."""
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
            if hasattr(self.optimizer, name):
                return list(getattr(self.optimizer, name))
        return [p.data for p in self.parameters.values()]

    def fragments(self) -> list[Fragment]:
        """The positions of this rank's parts of the parameters in `shards()`."""
        # Any: DeepSpeed sets attributes of its own on the parameters.
        parameters: list[tuple[str, Any]] = list(self.parameters.items())
        if not self.sharded:
            return [Fragment(name, tuple(p.shape), 0, p.numel(), i, 0) for i, (name, p) in enumerate(parameters)]
        if hasattr(self.optimizer, "fp32_partitioned_groups_flat"):
            return [f for name, p in parameters if (f := self._stage3_fragment(name, p)) is not None]
        fragments = []
        for name, p in parameters:
            if p._hp_mapping is not None:
                low, high = p._hp_mapping.lp_fragment_address, p._hp_mapping.hp_fragment_address
                group = p._hp_mapping.param_group_index
                fragments.append(Fragment(name, self.shapes[name], low.start, low.numel, group, high.start))
        return fragments

    def _stage3_fragment(self, name: str, parameter: Any) -> Fragment | None:
        group, offset, share = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
        start = torch.distributed.get_rank() * parameter.partition_numel()
        length = min(share, parameter.ds_numel - start)
        return Fragment(name, self.shapes[name], start, length, group, offset) if length > 0 else None

    def moments(self) -> dict[str, list[Tensor]]:
        """AdamW's moments, laid out like `shards()`; zeros before the first step."""
        shards = self._optimizer_keys()
        for shard in shards:
            state = self.adamw.state[shard]
            state.setdefault("step", torch.zeros((), device=shard.device))  # AdamW takes a state as it is, or as empty
            for name in MOMENTS:
                state.setdefault(name, torch.zeros_like(shard.data))
        return {name: [self.adamw.state[s][name] for s in shards] for name in MOMENTS}

    def updates(self) -> int:
        """Optimizer updates so far, as AdamW's bias correction counts them on the device."""
        return self._updates

    def set_updates(self, count: int) -> None:
        self._updates = count
        self.moments()
        for shard in self._optimizer_keys():
            self.adamw.state[shard]["step"] = torch.tensor(float(count), device=shard.device)

    def reset_moments(self) -> None:
        """AdamW begins anew: no moments, no updates."""
        for shards in self.moments().values():
            torch._foreach_zero_(shards)
        self.set_updates(0)

    def move_towards(self, other: "Engine", share: float) -> None:
        """Moves the weights this share of the way to those of an engine with the same model and ZeRO settings. All
        ranks call this."""
        with torch.no_grad():
            torch._foreach_lerp_(self.shards(), [shard.detach() for shard in other.shards()], share)
        self.refresh_model()

    def set_constants(self, values: dict[str, Tensor]) -> None:
        for name, buffer in self.module.named_buffers():
            if name in self.constants:
                self.constants[name] = values[name].to("cpu", torch.float32, copy=True)
                buffer.copy_(values[name])

    def _optimizer_keys(self) -> list[Tensor]:
        return self.shards() if self.sharded else list(self.parameters.values())

    def refresh_model(self) -> None:
        """Copies the shards into the weights that the model computes with. All ranks call this."""
        opt = self.optimizer
        if hasattr(opt, "update_lp_params"):
            opt.update_lp_params()
        elif hasattr(opt, "fp32_partitioned_groups_flat"):
            for i in range(len(opt.fp32_partitioned_groups_flat)):
                opt._reassign_or_swap_out_partitioned_parameters(i)
            if opt.persistent_parameters:
                opt.persistent_parameters[0].partition(opt.persistent_parameters)
                opt.persistent_parameters[0].all_gather(opt.persistent_parameters)

    @contextmanager
    def swapped_weights(self, shards: list[Tensor]) -> Iterator[nn.Module]:
        """The module with other weights, such as the EMA's, inside a `with`. All ranks enter and leave together."""
        own = [s.detach().clone() for s in self.shards()]
        self._exchange(shards)
        try:
            yield self.module
        finally:
            self._exchange(own)

    def _exchange(self, shards: list[Tensor]) -> None:
        with torch.no_grad():
            for mine, other in zip(self.shards(), shards, strict=True):
                mine.copy_(other)
        self.refresh_model()

    def destroy(self) -> None:
        self.engine.destroy()


class FrozenModel:
    """A model that is not trained: a copy on every rank, or sharded over the ranks by ZeRO-3.

    Gradients pass through it to its inputs. Every rank calls it the same number of times.
    """

    def __init__(self, model: nn.Module, precision: str, sharded: bool, device: torch.device) -> None:
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        model = model.requires_grad_(False).eval().to(device)
        self.traces: GatherTraces | None = None
        if not sharded:
            self.module: nn.Module = model.to(self.dtype)
            return
        self.engine, offload, *_ = deepspeed.initialize(model=model, config=frozen_config(precision))
        align_timeouts()
        self.module = self.engine.module
        _gather_with_callers(self.module)
        self.traces = GatherTraces(self.module, offload)

    def checksum(self) -> Tensor | None:
        """The checksum of its weights, where every rank has all of them."""
        weights = replicated_weights(self.module)
        return checksum(weights) if weights else None

    def bytes(self) -> RoleBytes:
        """Counts the bytes of its weights on this rank."""
        return RoleBytes(storage_bytes(_weights(self.module)), 0, 0, 0)


def _weights(model: nn.Module) -> Iterator[Tensor | None]:
    """The tensors a model computes with: its parameters, at stage 3 this rank's part of each, and 8-bit weights."""
    yield from int8_tensors(model)
    for parameter in model.parameters():
        yield parameter.data
        yield getattr(parameter, "ds_tensor", None)
