"""Benchmarks: ours and its alternatives in one run, interleaved, medians of many."""

import contextlib
import gc
import itertools
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...models.audiox import AudioX
from ..core.config import BaseConfig, LoggingConfig, PretrainConfig
from ..core.hardware import describe, description_lines, peak_flops
from ..cost.operations import counted, forward_flops, training_flops
from ..data.batches import Batch, Conditions
from ..engine import kernel_selection, zero
from ..engine.fp8 import check_fp8
from ..engine.timing import interleaved
from ..losses.flow_matching import flow_matching_loss, interpolate
from ..training.pretrain import Pretraining, configure_model, draw_noise, noise_levels
from .matmuls import products_of

C = TypeVar("C", bound=BaseConfig)
Maker = Callable[[], dict[str, Callable[[], None]]]  # of variants that share a model, by name


def train(
    config: PretrainConfig, rounds: int, inner: int, only: str = "", batches: Sequence[int] = ()
) -> dict[str, Any]:
    """Training steps through DeepSpeed, with the operations that the configuration's `kernels` say, against a plain
    PyTorch loop over the same model (reference operations, autocast, fused AdamW, clipping), both with the
    configuration's compilation and recomputation. With `only` of one variant alone. DeepSpeed's model also takes steps
    of other `batches` (samples; one rank alone has those), each in one micro-batch.

    On a CPU all take turns; with them the plain loop eagerly and in fp32, and the matrix products of the step alone, in
    the step's precision: whatever is done about the rest, no step is faster. Where several ranks share the batch, the
    plain loop has it whole and every core, and the other ranks wait. On a GPU, where two large models do not fit, one
    is made, measured and freed after the other, and `peak_bytes` is the most that was allocated for it.

    Raises ValueError where the configuration asks for what cannot run here.
    """
    kernel_selection.check(config.kernels, config.training.precision, config.model)
    if config.training.fp8:
        check_fp8()
    if batches and not 0 < min(batches) <= max(batches) <= config.training.micro_batch:
        raise ValueError(f"--batches {max(batches)}: between 1 and training.micro_batch, {config.training.micro_batch}")
    config = without_weights(config)
    world = zero.init_process_group(config.training.cpu_threads)
    batch = random_batch(config)
    mine = batch.split(len(batch) // world.ranks)[world.rank]
    dtype = torch.bfloat16 if config.training.precision == "bf16" and config.zero.stage else torch.float32
    choice = kernel_selection.chosen(config, world, config.training.precision)
    on_gpu = world.device.type == "cuda"

    sizes = {f"deepspeed, batch {n}": n for n in batches}

    def deepspeed() -> dict[str, Callable[[], None]]:
        task, step = Pretraining(config, world, choice.ops()), itertools.count()

        def stepping(part: Batch) -> Callable[[], None]:
            return lambda: _discard(task.step(next(step), part))

        others = {name: stepping(random_batch(config, n)) for name, n in sizes.items()}
        return {"deepspeed": stepping(mine)} | others

    makers = _plain(config, world, batch, on_gpu) | {"deepspeed": deepspeed}
    if only:
        makers = {only: makers[only]}
    facts: dict[str, Any] = {"host": describe(), "ranks": world.ranks, "kernels": choice.names}
    # Each batch has compiled code of its own, as in a run that has no other.
    torch._dynamo.config.automatic_dynamic_shapes = not sizes
    if on_gpu:
        seconds, peaks = apart(makers, rounds, inner, world.device)
    else:
        variants = {name: call for make in makers.values() for name, call in make().items()}
        if not only:
            loop = PlainLoop(config, world.device, "fp32", False, mine)
            variants["products alone"] = products = products_of(loop, dtype, world.device)
            facts["product_flops"] = products.flops / len(mine)
        seconds, peaks = interleaved(variants, rounds, inner, warmup=3), {}
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
    """Speed of a variant whose step has so many samples, beside the plain loop, whose step has the whole batch."""
    speeds = sorted(samples / s for s in seconds[name])
    median = statistics.median(speeds)
    row = {"variant": name, "samples": samples, "samples_per_s": median, "low": speeds[0], "high": speeds[-1]}
    if "plain" in seconds:
        ratios = [a / b for a, b in zip(seconds["plain"], seconds[name], strict=True)]
        row["ratio_to_plain"] = statistics.median(ratios) * samples / batch
    return row


def apart(
    makers: dict[str, Maker], rounds: int, inner: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each variant, and the most bytes that were allocated for it: made, measured and freed in turn. A plain
    loop that does not fit is named and left out."""
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    for name, make in makers.items():
        torch.cuda.reset_peak_memory_stats(device)
        try:
            seconds |= interleaved(make(), rounds, inner, warmup=3, device=device)
            peaks[name] = torch.cuda.max_memory_allocated(device)
        except torch.OutOfMemoryError as error:
            if name == "deepspeed":
                raise
            print(f"{name}: does not fit: {str(error).splitlines()[0]}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    return seconds, peaks


def _plain(config: PretrainConfig, world: zero.World, batch: Batch, on_gpu: bool) -> dict[str, Maker]:
    """What makes loops without DeepSpeed, by name."""
    training = config.training
    loops = {"plain": (training.precision, training.compile)}
    if not on_gpu and (training.compile or training.precision != "fp32"):
        loops["plain eager fp32"] = ("fp32", False)
    # As many samples at once as all ranks take together.
    config = replace(config, training=replace(training, micro_batch=training.micro_batch * world.ranks))

    def maker(name: str, precision: str, compiled: bool) -> Maker:
        return lambda: {name: _alone(PlainLoop(config, world.device, precision, compiled, batch), world)}

    return {name: maker(name, *how) for name, how in loops.items()}


def _alone(call: Callable[[], None], world: zero.World) -> Callable[[], None]:
    """On the first rank with all cores of the machine, while the others wait."""
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
    """A training step without DeepSpeed, as the alternative to measure against."""

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
            t = noise_levels(uniform, self.config.training).to(self.device)
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


@contextlib.contextmanager
def shared_folder(inside: Path | None, prefix: str) -> Iterator[Path]:
    """A temporary folder, the same on all ranks; it goes when all have left it."""
    with contextlib.ExitStack() as stack:
        place = [""]
        if torch.distributed.get_rank() == 0:
            place = [stack.enter_context(tempfile.TemporaryDirectory(dir=inside, prefix=prefix))]
        torch.distributed.broadcast_object_list(place)
        yield Path(place[0])
        torch.distributed.barrier()


def without_weights(config: C) -> C:
    """The same model with features from nowhere: no encoder or codec is loaded."""
    text = replace(config.model.text, kind="words")
    return replace(config, model=replace(config.model, text=text), logging=LoggingConfig())


def random_batch(config: BaseConfig, samples: int = 0) -> Batch:
    """A batch of the configured shapes and size (or of so many samples), full texts, numbers from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    model, n = config.model, samples or config.training.global_batch
    text = model.text
    shapes = (
        (n, model.codec.frames, model.codec.latent_channels),
        (n, model.video.steps, model.video.dim),
        (n, model.codec.frames, model.codec.latent_channels),
        (n, text.max_tokens, text.dim),
    )
    latents, video, audio, words = (torch.randn(s, generator=generator) for s in shapes)
    length = torch.randint(1, text.max_tokens + 1, (n,), generator=generator)
    names = tuple(str(i) for i in range(n))
    nothing = torch.zeros(n, model.codec.frames)
    return Batch(latents, Conditions(video, audio, words, length), nothing, torch.arange(n), ("T2A",) * n, names)


def _discard(_: object) -> None:
    return None


def table(result: dict[str, Any]) -> list[str]:
    """Lines to print."""
    lines = [*description_lines(result["host"]), counted(result["forward_flops"]), chosen_names(result["kernels"])]
    lines.append(f"{'variant':20} {'samples/s':>10} {'low':>8} {'high':>8} {'x plain':>8} {'MFU':>6} {'peak GB':>8}")
    for row in result["rows"]:
        speeds = f"{row['samples_per_s']:10.1f} {row['low']:8.1f} {row['high']:8.1f}"
        ratio = f"{row['ratio_to_plain']:8.3f}" if "ratio_to_plain" in row else f"{'':8}"
        peak = f"{row['peak_bytes'] / 1e9:8.1f}" if "peak_bytes" in row else ""
        lines.append(f"{row['variant']:20} {speeds} {ratio} {row['mfu']:6.3f} {peak}".rstrip())
    return lines


def chosen_names(names: dict[str, str]) -> str:
    """The implementation of each operation, as a line."""
    return "kernels: " + ", ".join(f"{op} {name}" for op, name in names.items())
