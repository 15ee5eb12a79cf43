"""Training steps through DeepSpeed against a plain PyTorch loop, taking turns."""

import gc
import itertools
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ...models.audiox import AudioX
from ..core.config import PretrainConfig
from ..core.hardware import peak_flops
from ..cost.operations import forward_flops, training_flops
from ..data.batches import Batch
from ..engine import zero
from ..engine.timing import time_interleaved
from ..losses.flow_matching import flow_matching_loss, interpolate
from ..training.pretrain import Pretraining, configure_model, draw_noise, sample_timesteps
from .matmul_replay import replay_matmuls
from .summary import Column, format_table, spread
from .synthetic_run import random_batch, share_of_rank, start_run

Variants = dict[str, Callable[[], object]]  # by name
COLUMNS = (
    Column("variant", "variant"),
    Column("samples/s", "samples_per_s", ".1f"),
    Column("low", "low", ".1f"),
    Column("high", "high", ".1f"),
    Column("x plain", "ratio_to_plain", ".3f"),
    Column("MFU", "mfu", ".3f"),
    Column("peak GB", "peak_bytes", ".1f", 1e-9),
)


def measure(
    config: PretrainConfig, rounds: int, inner: int, only: str = "", batches: Sequence[int] = ()
) -> dict[str, Any]:
    """Training steps through DeepSpeed, with the operations that the configuration's `kernels` select, against a plain
    PyTorch loop over the same model (reference operations, autocast, fused AdamW, clipping), both with the
    configuration's compilation and recomputation. `only` names the one variant to measure. DeepSpeed's model also takes
    steps of other `batches` (samples; only with one rank), each in one micro-batch.

    On a CPU all take turns. Two more take part there: the plain loop eagerly in fp32, and the step's matrix products
    alone in the step's precision, which no step can be faster than. If several ranks share the batch, the plain loop
    has all of it and every core, while the other ranks wait. On a GPU, where two large models do not fit, each is made,
    measured and freed in turn, and `peak_bytes` is the most that was allocated for it.

    Raises ValueError if the configuration asks for what cannot run here.
    """
    if batches and not 0 < min(batches) <= max(batches) <= config.training.micro_batch:
        raise ValueError(f"--batches {max(batches)}: between 1 and training.micro_batch, {config.training.micro_batch}")
    config, world, selection = start_run(config)
    batch = random_batch(config)
    mine = share_of_rank(batch, world)
    dtype = torch.bfloat16 if config.training.precision == "bf16" and config.zero.stage else torch.float32
    on_gpu = world.device.type == "cuda"

    sizes = {f"deepspeed, batch {n}": n for n in batches}

    def deepspeed() -> Variants:
        trainer, step = Pretraining(config, world, selection.ops()), itertools.count()

        def take_steps(part: Batch) -> Callable[[], object]:
            return lambda: trainer.step(next(step), part)

        others = {name: take_steps(random_batch(config, n)) for name, n in sizes.items()}
        return {"deepspeed": take_steps(mine)} | others

    factories = _plain_loops(config, world, batch, on_gpu) | {"deepspeed": deepspeed}
    if only:
        factories = {only: factories[only]}
    facts: dict[str, Any] = {"ranks": world.ranks, "kernels": selection.names}
    # Each batch has its own compiled code, as in a run that has no other.
    torch._dynamo.config.automatic_dynamic_shapes = not sizes
    if on_gpu:
        seconds, peaks = measure_one_by_one(factories, rounds, inner, world.device)
    else:
        variants = {name: call for make in factories.values() for name, call in make().items()}
        if not only:
            loop = PlainLoop(config, world.device, "fp32", False, mine)
            variants["products alone"] = products = replay_matmuls(loop, dtype, world.device)
            facts["product_flops"] = products.flops / len(mine)
        seconds, peaks = time_interleaved(variants, rounds, inner, warmup=3), {}
    parts = forward_flops(config.model, batch.conditions.text.shape[1])
    flops, peak = training_flops(config.model, batch.conditions.text.shape[1]), peak_flops(world.device, dtype)
    facts |= {"forward_flops": parts, "training_flops": flops, "peak_flops": peak * world.ranks}
    rows = [_row(name, seconds, sizes.get(name, len(batch)), len(batch)) for name in seconds]
    for row in rows:
        row["mfu"] = row["samples_per_s"] * flops / facts["peak_flops"]
        if row["variant"] in peaks:
            row["peak_bytes"] = peaks[row["variant"]]
    return facts | {"rows": rows}


def _row(name: str, seconds: dict[str, list[float]], samples: int, batch: int) -> dict[str, Any]:
    """The speed of a variant whose step has so many samples, against the plain loop, whose step has the whole batch."""
    row: dict[str, Any] = {"variant": name, "samples": samples}
    row |= spread((samples / s for s in seconds[name]), "samples_per_s")
    if "plain" in seconds:
        ratios = [a / b for a, b in zip(seconds["plain"], seconds[name], strict=True)]
        row["ratio_to_plain"] = statistics.median(ratios) * samples / batch
    return row


def measure_one_by_one(
    factories: dict[str, Callable[[], Variants]], rounds: int, inner: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """The seconds of each variant and the most bytes that were allocated for it. Each is made, measured and freed in
    turn. A plain loop that does not fit is named and left out."""
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    for name, make in factories.items():
        torch.cuda.reset_peak_memory_stats(device)
        try:
            seconds |= time_interleaved(make(), rounds, inner, warmup=3, device=device)
            peaks[name] = torch.cuda.max_memory_allocated(device)
        except torch.OutOfMemoryError as error:
            if name == "deepspeed":
                raise
            print(f"{name}: does not fit: {str(error).splitlines()[0]}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    return seconds, peaks


def _plain_loops(
    config: PretrainConfig, world: zero.World, batch: Batch, on_gpu: bool
) -> dict[str, Callable[[], Variants]]:
    """Factories of loops without DeepSpeed, by name."""
    training = config.training
    loops = {"plain": (training.precision, training.compile)}
    if not on_gpu and (training.compile or training.precision != "fp32"):
        loops["plain eager fp32"] = ("fp32", False)
    # As many samples at a time as all ranks take together.
    config = replace(config, training=replace(training, micro_batch=training.micro_batch * world.ranks))

    def factory(name: str, precision: str, compiled: bool) -> Callable[[], Variants]:
        return lambda: {name: _on_first_rank(PlainLoop(config, world.device, precision, compiled, batch), world)}

    return {name: factory(name, *how) for name, how in loops.items()}


def _on_first_rank(call: Callable[[], None], world: zero.World) -> Callable[[], None]:
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
        self, config: PretrainConfig, device: torch.device, precision: str, compiled: bool, batch: Batch
    ) -> None:
        torch.manual_seed(config.training.seed)
        self.config, self.device, self.batch = config, device, batch
        with device:
            model = AudioX(config.model)
        self.model = configure_model(model, replace(config.training, compile=compiled, fp8=False)).to(device)
        o = config.optimizer
        self.adamw = torch.optim.AdamW(
            self.model.parameters(), o.lr, (o.betas[0], o.betas[1]), o.eps, o.weight_decay, fused=True
        )
        self.autocast = precision == "bf16"
        self.ema = [p.detach().clone() for p in self.model.parameters()]

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
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.max_grad_norm)
        self.adamw.step()
        self.adamw.zero_grad()
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.model.parameters()], 1e-3)


def summary_lines(result: dict[str, Any]) -> list[str]:
    return format_table(result["rows"], COLUMNS)
