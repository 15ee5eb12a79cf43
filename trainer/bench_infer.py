"""How fast latents are made: sampling as it is done here beside plainer ways to do the same."""

import copy
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.ops import KernelsConfig
from ..models.audiox import AudioX, SamplingConfig
from ..models.config import ModelConfig
from ..models.sampler import guided, noise_levels, sample
from . import backends
from .flops import forward_flops
from .hardware import describe, peak_flops
from .kernel_cases import Shape
from .making import nfe
from .pretrain import compile_blocks
from .timing import interleaved


def infer(
    model: ModelConfig, samplings: Sequence[SamplingConfig], batch: int, dtype: torch.dtype, rounds: int
) -> dict[str, Any]:
    """Seconds of a batch's latents with random weights and full texts, for each sampling in three ways:

    - "plain": reference operations, modulations computed at every step, guidance as two forwards;
    - "ours": the chosen operations, modulations computed once for all batches, guidance as one forward;
    - "ours, compiled": the same with compiled blocks;
    - "ours, CUDA graph": that, captured once and replayed, where there is a GPU and the capture succeeds.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    plain = AudioX(model).to(device, dtype).eval().requires_grad_(False)
    ops = backends.decide(KernelsConfig(), Shape.of(model, 2 * batch), device, dtype)[0].ops()
    ours, compiled = (_sharing(plain).use(ops) for _ in range(2))
    compile_blocks(compiled)
    both = [_condition(model, batch, device, dtype) for _ in range(2)]
    noise = torch.randn(batch, model.codec.frames, model.codec.channels, device=device)
    peak = peak_flops(device, dtype)
    rows = []
    for sampling in samplings:
        ways: dict[str, Callable[[], None]] = {
            "plain": _plainly(plain, sampling, both, noise, dtype),
            "ours": _ours(ours, sampling, both, noise, dtype),
            "ours, compiled": _ours(compiled, sampling, both, noise, dtype),
        }
        with torch.inference_mode():
            if device.type == "cuda" and (replay := _captured(ways["ours, compiled"])):
                ways["ours, CUDA graph"] = replay
            seconds = interleaved(ways, rounds, inner=1, warmup=2, device=device)
        flops = nfe(sampling) * batch * forward_flops(model, model.text.max_tokens)["total"]
        for way, values in seconds.items():
            median = statistics.median(values)
            ratios = [a / b for a, b in zip(seconds["plain"], values, strict=True)]
            rows.append(
                {
                    "steps": sampling.steps,
                    "nfe": nfe(sampling),
                    "batch": batch,
                    "way": way,
                    "ms": 1000 * median,
                    "low_ms": 1000 * min(values),
                    "high_ms": 1000 * max(values),
                    "times_plain": statistics.median(ratios),
                    "rtf": median / batch / model.codec.seconds,
                    "mfu": flops / median / peak,
                }
            )
    return {"host": describe(), "rows": rows}


def _captured(call: Callable[[], None]) -> Callable[[], None] | None:
    """Replays what `call` does on the GPU; nothing where it does what a graph cannot hold."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiled, and what is allocated once is there, before the capture
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        print(f"no CUDA graph: {error}", file=sys.stderr)
        return None
    return graph.replay


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
) -> Callable[[], None]:
    def velocity(z: Tensor, t: Tensor) -> Tensor:
        v = network.backbone(z.to(dtype), t, *both[0]).float()
        if sampling.guidance == 1:
            return v
        v_uncond = network.backbone(z.to(dtype), t, *both[1]).float()
        return v_uncond + sampling.guidance * (v - v_uncond)

    def call() -> None:
        sample(velocity, lambda: noise, sampling)

    return call


def _ours(
    network: AudioX, sampling: SamplingConfig, both: list[tuple[Tensor, Tensor]], noise: Tensor, dtype: torch.dtype
) -> Callable[[], None]:
    times = torch.tensor(noise_levels(sampling)[:-1], device=noise.device)
    levels = [network.backbone.levels(t) for t in times.split(1)]

    def call() -> None:
        steps = iter(levels)

        def backbone(z: Tensor, t: Tensor, condition: Tensor, length: Tensor) -> Tensor:
            return network.backbone(z.to(dtype), next(steps).expand(len(z)), condition, length)

        sample(guided(backbone, both[0], both[1], sampling.guidance), lambda: noise, sampling)

    return call


def table(result: dict[str, Any]) -> list[str]:
    """Lines to print."""
    lines = [
        f"{'steps':>6} {'NFE':>5} {'way':16} {'ms':>9} {'low':>9} {'high':>9} {'x plain':>8} {'RTF':>7} {'MFU':>6}"
    ]
    for row in result["rows"]:
        times = f"{row['ms']:9.1f} {row['low_ms']:9.1f} {row['high_ms']:9.1f} {row['times_plain']:8.2f}"
        lines.append(f"{row['steps']:6} {row['nfe']:5} {row['way']:16} {times} {row['rtf']:7.4f} {row['mfu']:6.3f}")
    return lines
