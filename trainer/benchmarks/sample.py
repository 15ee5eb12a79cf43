"""How fast latents are made: sampling as it is done here beside plainer ways to do the same."""

import copy
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels.ops import KernelsConfig
from ...models.audiox import AudioX, SamplingConfig
from ...models.config import ModelConfig
from ...models.sampler import guided, nfe, noise_levels, sample
from ..core.hardware import describe, description_lines, peak_flops
from ..cost.operations import counted, forward_flops
from ..engine import kernel_selection
from ..engine.compilation import compile_blocks
from ..engine.kernel_cases import Shape
from ..engine.timing import captured, interleaved
from .train import chosen_names

PRECISIONS = {torch.float32: "fp32"}
# What latents made in two ways may differ by: roundings add up over the steps of a sampling.
SAME = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}


def infer(
    model: ModelConfig,
    samplings: Sequence[SamplingConfig],
    batch: int,
    dtype: torch.dtype,
    rounds: int,
    kernels: KernelsConfig,
) -> dict[str, Any]:
    """Seconds of a batch's latents with random weights and full texts, for each sampling in several ways, and how far
    each way's latents are from those of the first:

    - "plain": reference operations, modulations computed at every step, guidance as two forwards;
    - "ours": the chosen operations, modulations computed once for all batches, guidance as one forward;
    - "ours, compiled": the same with compiled blocks;
    - "ours, CUDA graph": that, captured once and replayed, where there is a GPU and the capture succeeds.

    Raises ValueError where `kernels` ask for what cannot run here.
    """
    kernel_selection.check(kernels, PRECISIONS.get(dtype, "bf16"), model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    with device:
        plain = AudioX(model).to(device, dtype).eval().requires_grad_(False)
    for parameter in plain.parameters():  # those that start at zero would hide what stands before them
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    table = kernel_selection.read_table(Path(kernels.benchmark_file)) if kernels.benchmark_file else None
    choice = kernel_selection.decide(kernels, Shape.of(model, 2 * batch), device, dtype, table)[0]
    ops = choice.ops()
    ours, compiled = (_sharing(plain).use(ops) for _ in range(2))
    compile_blocks(compiled)
    both = [_condition(model, batch, device, dtype) for _ in range(2)]
    noise = torch.randn(batch, model.codec.frames, model.codec.latent_channels, device=device)
    peak, counts = peak_flops(device, dtype), forward_flops(model, model.text.max_tokens)
    rows: list[dict[str, Any]] = []
    for sampling in samplings:
        ways: dict[str, Callable[[], Tensor]] = {
            "plain": _plainly(plain, sampling, both, noise, dtype),
            "ours": _ours(ours, sampling, both, noise, dtype),
            "ours, compiled": _ours(compiled, sampling, both, noise, dtype),
        }
        with torch.inference_mode():
            if device.type == "cuda" and (replay := _replaying(ways["ours, compiled"])):
                ways["ours, CUDA graph"] = replay
            off = _differences(ways, dtype)
            turns: dict[str, Callable[[], None]] = {name: _discarding(call) for name, call in ways.items()}
            seconds = interleaved(turns, rounds, inner=1, warmup=2, device=device)
        about = {"steps": sampling.steps, "nfe": nfe(sampling), "batch": batch}
        for way in seconds:
            row = about | {"way": way} | _times(way, seconds) | {"off": off[way]}
            row["rtf"] = row["ms"] / 1000 / batch / model.codec.seconds
            row["mfu"] = nfe(sampling) * batch * counts["total"] / (row["ms"] / 1000) / peak
            rows.append(row)
    return {"host": describe(), "kernels": choice.names, "rows": rows, "forward_flops": counts}


def _times(way: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Milliseconds of a way, and how many times as fast as the plain one it is."""
    ratios = [a / b for a, b in zip(seconds["plain"], seconds[way], strict=True)]
    median, low, high = (1000 * f(seconds[way]) for f in (statistics.median, min, max))
    return {"ms": median, "low_ms": low, "high_ms": high, "times_plain": statistics.median(ratios)}


def _replaying(call: Callable[[], Tensor]) -> Callable[[], Tensor] | None:
    """Replays what `call` does on the GPU, into the same latents; nothing where it does what a graph cannot hold."""
    made: list[Tensor] = []

    def into() -> None:
        made[:] = [call()]

    try:
        replay = captured(lambda: into, 1)
    except RuntimeError as error:
        print(f"no CUDA graph: {error}", file=sys.stderr)
        return None
    (latents,) = made

    def again() -> Tensor:
        latents.zero_()  # what is there afterwards the graph has made
        replay()
        return latents

    return again


def _differences(ways: dict[str, Callable[[], Tensor]], dtype: torch.dtype) -> dict[str, float]:
    """Root mean square of each way's latents less those of the first, over theirs. A way where it is too large is named
    and left out of `ways`."""
    latents = {name: call().float().clone() for name, call in ways.items()}
    first = next(iter(latents.values()))
    off = {name: ((x - first).square().mean() / first.square().mean()).sqrt().item() for name, x in latents.items()}
    for name, value in off.items():
        if not value <= SAME[dtype]:
            print(f"{name}: left out: its latents are off by {value:.2g} of those made plainly", flush=True)
            del ways[name]
    return off


def _discarding(call: Callable[[], Tensor]) -> Callable[[], None]:
    def discard() -> None:
        call()

    return discard


def _sharing(network: AudioX) -> AudioX:
    """Another module with the same tensors."""
    return copy.deepcopy(network, {id(p): p for p in network.parameters()})


def _condition(model: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """H_c of full texts, and its lengths."""
    tokens = model.video.tokens + model.codec.frames + model.text.max_tokens
    h = torch.randn(batch, tokens, model.fusion.width, device=device, dtype=dtype)
    return h, torch.full((batch,), tokens, device=device)


def _plainly(
    network: AudioX, sampling: SamplingConfig, both: list[tuple[Tensor, Tensor]], noise: Tensor, dtype: torch.dtype
) -> Callable[[], Tensor]:
    def velocity(z: Tensor, t: Tensor) -> Tensor:
        v = network.backbone(z.to(dtype), t, *both[0]).float()
        if sampling.guidance == 1:
            return v
        v_uncond = network.backbone(z.to(dtype), t, *both[1]).float()
        return v_uncond + sampling.guidance * (v - v_uncond)

    def call() -> Tensor:
        return sample(velocity, lambda: noise, sampling)

    return call


def _ours(
    network: AudioX, sampling: SamplingConfig, both: list[tuple[Tensor, Tensor]], noise: Tensor, dtype: torch.dtype
) -> Callable[[], Tensor]:
    times = torch.tensor(noise_levels(sampling)[:-1], device=noise.device)
    levels = [network.backbone.levels(t) for t in times.split(1)]

    def call() -> Tensor:
        steps = iter(levels)

        def backbone(z: Tensor, t: Tensor, condition: Tensor, length: Tensor) -> Tensor:
            return network.backbone(z.to(dtype), next(steps).expand(len(z)), condition, length)

        return sample(guided(backbone, both[0], both[1], sampling.guidance), lambda: noise, sampling)

    return call


def table(result: dict[str, Any]) -> list[str]:
    """Lines to print."""
    lines = [*description_lines(result["host"]), counted(result["forward_flops"]), chosen_names(result["kernels"])]
    lines += [
        f"{'steps':>6} {'NFE':>5} {'way':16} {'ms':>9} {'low':>9} {'high':>9} {'x plain':>8} {'RTF':>7} {'MFU':>6}"
    ]
    for row in result["rows"]:
        times = f"{row['ms']:9.1f} {row['low_ms']:9.1f} {row['high_ms']:9.1f} {row['times_plain']:8.2f}"
        lines.append(f"{row['steps']:6} {row['nfe']:5} {row['way']:16} {times} {row['rtf']:7.4f} {row['mfu']:6.3f}")
    return lines
