"""Training steps through DeepSpeed against a plain PyTorch loop, taking turns."""

import gc
import itertools
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ...models.config import ReleasedModelConfig
from ...models.lora import add_adapters
from ...models.networks import build_network
from ...models.released.audiox import ReleasedAudioX
from ..core.config import PretrainConfig
from ..core.hardware import peak_flops
from ..cost.operations import forward_flops, training_flops
from ..data.batches import Batch
from ..engine.kernel_selection import KernelSelection
from ..engine.process_group import World
from ..engine.timing import time_interleaved
from ..losses.flow_matching import flow_matching_loss, interpolate
from ..training.pretrain import Pretraining, configure_model, draw_noise, sample_timesteps, silence_after
from .released.plain_reading import PlainReading
from .step_parts import profile_call, profile_lines, replay_matmuls
from .summary import Column, format_table, spread
from .synthetic_run import random_batch, share_of_rank, start_run

Variants = dict[str, Callable[[], object]]  # by name
READING = "plain reading"  # of the released network's description
COLUMNS = (
    Column("variant", "variant"),
    Column("samples/s", "samples_per_s", ".1f"),
    Column("low", "low", ".1f"),
    Column("high", "high", ".1f"),
    Column("x plain", "ratio_to_plain", ".3f"),
    Column("x reading", "ratio_to_reading", ".3f"),
    Column("MFU", "mfu", ".3f"),
    Column("peak GB", "peak_bytes", ".1f", 1e-9),
)


def measure(
    config: PretrainConfig,
    rounds: int,
    inner: int,
    only: str = "",
    batches: Sequence[int] = (),
    profiled: bool = False,
) -> dict[str, Any]:
    """Training steps through DeepSpeed, with the operations that the configuration's `kernels` select, against a plain
    PyTorch loop over the same model (reference operations, autocast, fused AdamW, clipping), both with the
    configuration's compilation and recomputation. Of the released network a plain reading of its description takes part
    as well, in the same loop. `only` names the one variant to measure. DeepSpeed's model also takes
    steps of other `batches` (samples; only with one rank), each in one micro-batch.

    On a CPU all take turns. Two more take part there: the plain loop eagerly in fp32, and the step's matrix products
    alone in the step's precision, which no step can be faster than. If several ranks share the batch, the plain loop
    has all of it and every core, while the other ranks wait. On a GPU, where two large models do not fit, each is made,
    measured and freed in turn, and `peak_bytes` is the most that was allocated for it.

    With `profiled`, `profiles` says where one more step of DeepSpeed's and of the plain loop spends its time.

    Raises ValueError if the configuration asks for what cannot run here.
    """
    if batches and not 0 < min(batches) <= max(batches) <= config.training.micro_batch:
        raise ValueError(f"--batches {max(batches)}: between 1 and training.micro_batch, {config.training.micro_batch}")
    config, world, selection = start_run(config)
    batch, sizes = random_batch(config), {f"deepspeed, batch {n}": n for n in batches}
    dtype = torch.bfloat16 if config.training.precision == "bf16" and config.zero.stage else torch.float32
    factories = _plain_loops(config, world, batch) | {"deepspeed": partial(_deepspeed, config, world, selection, sizes)}
    if only:
        factories = {only: factories[only]}
    tokens = batch.conditions.text.shape[1]
    flops, peak = training_flops(config.model, tokens, config.lora), peak_flops(world.device, dtype) * world.ranks
    facts: dict[str, Any] = {
        "ranks": world.ranks,
        "kernels": selection.names,
        "forward_flops": forward_flops(config.model, tokens),
        "training_flops": flops,
        "peak_flops": peak,
    }
    # Each batch has its own compiled code, as in a run that has no other.
    torch._dynamo.config.automatic_dynamic_shapes = not sizes
    if world.device.type == "cuda":
        seconds, peaks, profiles = measure_one_by_one(factories, rounds, inner, world.device, profiled)
    else:
        variants, peaks = {name: call for make in factories.values() for name, call in make().items()}, {}
        if not only:
            mine = share_of_rank(batch, world)
            loop = PlainLoop(config, world.device, "fp32", False, mine)
            variants["products alone"] = products = replay_matmuls(loop, dtype, world.device)
            facts["product_flops"] = products.flops / len(mine)
        seconds = time_interleaved(variants, rounds, inner, warmup=3)
        named = [name for name in ("deepspeed", "plain", "plain eager fp32") if profiled and name in variants]
        profiles = {name: profile_call(variants[name], world.device) for name in named}
    rows = [_row(name, seconds, sizes.get(name, len(batch)), len(batch)) for name in seconds]
    for row in rows:
        row["mfu"] = row["samples_per_s"] * flops / peak
        if row["variant"] in peaks:
            row["peak_bytes"] = peaks[row["variant"]]
    return facts | {"rows": rows} | ({"profiles": profiles} if profiled else {})


def _deepspeed(config: PretrainConfig, world: World, selection: KernelSelection, sizes: dict[str, int]) -> Variants:
    """Steps of the rank's share of a batch, and of other batches, of these `sizes` by name."""
    trainer, step = Pretraining(config, world, selection.ops()), itertools.count()

    def take_steps(part: Batch) -> Callable[[], object]:
        return lambda: trainer.step(next(step), part)

    others = {name: take_steps(random_batch(config, n)) for name, n in sizes.items()}
    return {"deepspeed": take_steps(share_of_rank(random_batch(config), world))} | others


def _row(name: str, seconds: dict[str, list[float]], samples: int, batch: int) -> dict[str, Any]:
    """The speed of a variant whose step has so many samples, against plain loops, whose step has the whole batch."""
    row: dict[str, Any] = {"variant": name, "samples": samples}
    row |= spread((samples / s for s in seconds[name]), "samples_per_s")
    for base, key in (("plain", "ratio_to_plain"), (READING, "ratio_to_reading")):
        if base in seconds:
            ratios = [a / b for a, b in zip(seconds[base], seconds[name], strict=True)]
            row[key] = statistics.median(ratios) * samples / batch
    return row


def measure_one_by_one(
    factories: dict[str, Callable[[], Variants]], rounds: int, inner: int, device: torch.device, profiled: bool = False
) -> tuple[dict[str, list[float]], dict[str, int], dict[str, list[dict[str, Any]]]]:
    """The seconds of each variant, the most bytes that were allocated for it, and its profile. Each is made, measured
    and freed in turn. A plain loop that does not fit is named and left out."""
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    profiles: dict[str, list[dict[str, Any]]] = {}
    for name, make in factories.items():
        torch.cuda.reset_peak_memory_stats(device)
        try:
            variants = make()
            seconds |= time_interleaved(variants, rounds, inner, warmup=3, device=device)
            peaks[name] = torch.cuda.max_memory_allocated(device)
            if profiled:
                profiles[name] = profile_call(variants[name], device)
            del variants
        except torch.OutOfMemoryError as error:
            if name == "deepspeed":
                raise
            print(f"{name}: does not fit: {str(error).splitlines()[0]}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    return seconds, peaks, profiles


def _plain_loops(config: PretrainConfig, world: World, batch: Batch) -> dict[str, Callable[[], Variants]]:
    """Factories of loops without DeepSpeed, by name."""
    training = config.training
    loops = {"plain": (training.precision, training.compile)}
    if world.device.type != "cuda" and (training.compile or training.precision != "fp32"):
        loops["plain eager fp32"] = ("fp32", False)
    if isinstance(config.model, ReleasedModelConfig) and not config.lora:
        loops[READING] = (training.precision, training.compile)
    # As many samples at a time as all ranks take together.
    config = replace(config, training=replace(training, micro_batch=training.micro_batch * world.ranks))

    def factory(name: str, precision: str, compiled: bool) -> Callable[[], Variants]:
        loop = partial(PlainLoop, config, world.device, precision, compiled, batch, name == READING)
        return lambda: {name: _on_first_rank(loop(), world)}

    return {name: factory(name, *how) for name, how in loops.items()}


def _on_first_rank(call: Callable[[], None], world: World) -> Callable[[], None]:
    """The same on the first rank alone, with all cores of the machine, while the others wait."""
    if world.ranks == 1:
        return call
    own = torch.get_num_threads()

    def first() -> None:
        if world.rank == 0:
            torch.set_num_threads(os.cpu_count() or 1)
            call()
            torch.set_num_threads(own)
        torch.distributed.barrier()

    return first


class PlainLoop:
    """A training step without DeepSpeed."""

    def __init__(
        self,
        config: PretrainConfig,
        device: torch.device,
        precision: str,
        compiled: bool,
        batch: Batch,
        reading: bool = False,
    ) -> None:
        torch.manual_seed(config.training.seed)
        self.config, self.device = config, device
        with device:
            model = build_network(config.model)
        if config.lora:
            add_adapters(model, config.lora)
        silence = {name: buffer.cpu() for name, buffer in model.named_buffers()}
        self.batch = batch.followed_by(*silence_after(config, silence), 0)
        self.model: nn.Module
        if reading and isinstance(model, ReleasedAudioX):
            self.model = PlainReading(model, compiled).to(device)
        else:
            self.model = configure_model(model, replace(config.training, compile=compiled, fp8=False)).to(device)
        o = config.optimizer
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.adamw = torch.optim.AdamW(self.trained, o.lr, (o.betas[0], o.betas[1]), o.eps, o.weight_decay, fused=True)
        self.autocast = precision == "bf16"
        self.ema = [p.detach().clone() for p in self.trained]

    def __call__(self) -> None:
        micro = self.batch.split(self.config.training.micro_batch)
        for part in micro:
            z1, uniform = draw_noise(0, 0, part)
            t = sample_timesteps(uniform, self.config.training).to(self.device)
            z0, z1 = part.latents.to(self.device), z1.to(self.device)
            conditions = part.conditions.to(self.device, torch.float32).tensors()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                v = self.model(interpolate(z0, z1, t), t, *conditions)
            (flow_matching_loss(v, z0, z1).mean() / len(micro)).backward()
        if self.config.optimizer.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.trained, self.config.optimizer.max_grad_norm)
        self.adamw.step()
        self.adamw.zero_grad()
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.trained], 1e-3)


def summary_lines(result: dict[str, Any]) -> list[str]:
    return [*format_table(result["rows"], COLUMNS), *profile_lines(result.get("profiles", {}))]
