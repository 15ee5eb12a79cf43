"""The only module that imports DeepSpeed: process group, ZeRO set-up, and the fp32 shards that each rank owns.

Checkpoints, EMA and conversion work on fragments of these shards, so they are the same at every ZeRO stage and for
every number of ranks.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor, nn
from torch.distributed import distributed_c10d as c10d

from ..core.cli import ExitCode
from ..core.config import OptimizerConfig, TimeoutsConfig, ZeroConfig
from ..core.config_reader import merged
from ..core.hardware import free_port, keep_freed_memory
from ..cost.role_bytes import RoleBytes, storage_bytes
from .fragment import Fragment

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class World:
    """The rank of this process, and its device."""

    rank: int
    ranks: int
    local_rank: int
    device: torch.device


def init_process_group(threads: int = 0, timeouts: TimeoutsConfig | None = None) -> World:
    """Joins the process group that torchrun, deepspeed or Slurm describe. Without a launcher there is one rank.

    `threads` per rank on a CPU; with 0 the ranks share those that torch would use. Raises MissingRanksError where the
    group is not complete within `timeouts.start` seconds, OSError where its port is taken.
    """
    timeouts = timeouts or TimeoutsConfig()
    if threads:
        torch.set_num_threads(threads)
    local_size = os.environ.get("LOCAL_SIZE", "1")  # the name of LOCAL_WORLD_SIZE in DeepSpeed's launcher
    defaults = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": local_size,
        "MASTER_ADDR": "127.0.0.1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())
    accelerator = get_accelerator()
    local = int(os.environ["LOCAL_RANK"])
    if accelerator.device_name() != "cpu":
        accelerator.set_device(local)
    else:
        keep_freed_memory()
        if not threads and "OMP_NUM_THREADS" not in os.environ:  # otherwise every rank uses every core
            torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])))
    # On a CPU DeepSpeed would compile an inference operation for 45 s, which training never calls.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = accelerator.communication_backend_name()
    try:
        deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=timedelta(seconds=timeouts.start))
    except RuntimeError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).strip().split("\n")[0]
        taken = "EADDRINUSE" in reason or "address already in use" in reason
        remedy = "another program has the port: set another MASTER_PORT" if taken else "is every rank there?"
        kind = OSError if taken else MissingRanksError
        raise kind(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} found no process group at {where}: {remedy} "
            f"({reason})"
        ) from error
    _use_current_collectives()
    c10d._set_pg_timeout(timedelta(seconds=timeouts.collective))
    device = torch.device(accelerator.device_name(local) if accelerator.device_name() != "cpu" else "cpu")
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size(), local, device)


def _use_current_collectives() -> None:
    """DeepSpeed would call two collectives by names that torch 2.13 deprecates. Older releases lack the new ones."""
    for name in ("all_gather", "reduce_scatter"):
        if function := getattr(torch.distributed, f"{name}_single", None):
            setattr(deepspeed.comm.comm.cdb, f"{name}_function", function)


def align_timeouts() -> None:
    """Gives every process group the timeout of the default one. Those that DeepSpeed makes have torch's own, which for
    NCCL is ten minutes."""
    default = c10d._get_default_group()
    timeout = default._get_backend(default._device_types[0]).options._timeout
    for group in c10d._world.pg_map:
        c10d._set_pg_timeout(timeout, group)


class MissingRanksError(OSError):
    """A rank did not start, or died before all had joined."""

    exit_code = ExitCode.HUNG  # a retry may succeed


class Engine:
    """One trained model under DeepSpeed: backward, step, and access to the shards that its optimizer owns."""

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
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        adamw = torch.optim.AdamW(
            model.parameters(),
            lr=optimizer.lr,
            betas=(optimizer.betas[0], optimizer.betas[1]),
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=not zero.offload_optimizer,
        )
        settings = deepspeed_config(zero, optimizer.max_grad_norm, precision, micro_batch, accumulation)
        config = merged(settings, overrides)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(model=model, optimizer=adamw, config=config)
        align_timeouts()
        self.module: nn.Module = self.engine.module
        self.dtype = torch.bfloat16 if precision == "bf16" and zero.stage > 0 else torch.float32
        self.adamw = adamw
        self.sharded = hasattr(self.optimizer, "optimizer")  # otherwise plain AdamW on replicated fp32 parameters
        self.clip, self.offload = optimizer.max_grad_norm, zero.offload_optimizer
        self.norm = float("nan")  # the last gradient's, where nothing is sharded
        self._updates = 0
        self._gradient_bytes = 0
        if hasattr(self.optimizer, "check_grad_overflow"):
            self.optimizer.check_grad_overflow = True  # DeepSpeed looks for non-finite gradients in low precision only

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
        if boundary and not self.sharded:
            finite = self._clip_or_drop()
        self.engine.step()
        applied = boundary and finite and bool(self.engine.was_step_applied())
        self._updates += applied
        return applied

    def bytes(self, ema: Sequence[Tensor] = ()) -> RoleBytes:
        """Counts the bytes of the model's tensors on this rank, and with offload on its host. Gradients are counted in
        the first update."""
        optimizer = [t for state in self.adamw.state.values() for t in state.values() if isinstance(t, Tensor)]
        copies = getattr(self.optimizer, "param_buffer_of_bit16_for_cpu_offload_groups", ())
        weights = storage_bytes([*_weights(self.module), *self.shards(), *copies])
        return RoleBytes(weights, self._gradient_bytes, storage_bytes(optimizer), storage_bytes(ema))

    def _gradients(self) -> Iterator[Tensor | None]:
        """Every tensor that holds a gradient between backward and step, at whichever stage."""
        for parameter in self.module.parameters():
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
        parameters = list(self.module.parameters())
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
        """The fp32 weights that this rank owns: flat tensors, or all parameters where nothing is sharded."""
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
            if hasattr(self.optimizer, name):
                return list(getattr(self.optimizer, name))
        return [p.data for p in self.module.parameters()]

    def fragments(self) -> list[Fragment]:
        """The positions of this rank's parts of the parameters in `shards()`."""
        # Any: DeepSpeed sets attributes of its own on the parameters.
        parameters: list[tuple[str, Any]] = [(self.names[id(p)], p) for p in self.module.parameters()]
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

    def _optimizer_keys(self) -> list[Tensor]:
        return self.shards() if self.sharded else list(self.module.parameters())

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
        if not sharded:
            self.module: nn.Module = model.to(self.dtype)
            return
        # Small weights are sharded too: after a backward to the inputs DeepSpeed keeps only some of them gathered.
        shared = {"stage": 3, "stage3_param_persistence_threshold": 0}
        config: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": shared}
        config["steps_per_print"] = 10**9
        if precision == "bf16":
            config["bf16"] = {"enabled": True}
        self.engine, *_ = deepspeed.initialize(model=model, config=config)
        align_timeouts()
        self.module = self.engine.module

    def bytes(self) -> RoleBytes:
        """Counts the bytes of its weights on this rank."""
        return RoleBytes(storage_bytes(_weights(self.module)), 0, 0, 0)


def _weights(model: nn.Module) -> Iterator[Tensor | None]:
    """The tensors a model computes with: its parameters, and at stage 3 this rank's part of each."""
    for parameter in model.parameters():
        yield parameter.data
        yield getattr(parameter, "ds_tensor", None)


def deepspeed_config(
    zero: ZeroConfig, clip: float, precision: str, micro_batch: int, accumulation: int
) -> dict[str, Any]:
    """DeepSpeed's configuration. Gradients are accumulated in fp32 at every stage."""
    on_gpu = get_accelerator().device_name() != "cpu"
    stage: dict[str, Any] = {
        "stage": zero.stage,
        "overlap_comm": on_gpu and zero.stage > 0,
        "contiguous_gradients": True,
        "round_robin_gradients": False,
    }
    if zero.offload_optimizer:
        stage["offload_optimizer"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip if zero.stage > 0 else 0.0,  # without ZeRO the engine clips by itself
        "zero_optimization": stage,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if precision == "bf16" and zero.stage == 0:
        # Without ZeRO, DeepSpeed keeps fp32 weights and gradients only under autocast.
        config |= {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    elif precision == "bf16":
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return config
