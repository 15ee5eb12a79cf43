"""The speed of sampling latents: ours against plainer ways to do the same."""

import copy
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels.ops import KernelsConfig
from ...models.audiox import SamplingConfig
from ...models.config import AnyModelConfig, ReleasedModelConfig
from ...models.networks import Network, build_network
from ...models.released.audiox import ReleasedAudioX
from ...models.sampler import Velocity, guidance_scales, nfe, sample, sampling_timesteps, with_guidance
from ..core.hardware import peak_flops
from ..cost.operations import forward_flops
from ..engine import kernel_selection
from ..engine.compilation import compile_blocks
from ..engine.kernel_cases import BlockShape
from ..engine.timing import capture_graph, time_interleaved
from .released.plain_reading import PlainReading
from .summary import Column, format_table, spread

READING = "plain reading"
PRECISIONS = {torch.float32: "fp32"}
# How far latents made in two ways may differ: roundings add up over the steps of a sampling.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}


COLUMNS = (
    Column("steps", "steps", "d"),
    Column("NFE", "nfe", "d"),
    Column("way", "way"),
    Column("ms", "ms", ".1f"),
    Column("low", "low_ms", ".1f"),
    Column("high", "high_ms", ".1f"),
    Column("x plain", "times_plain", ".2f"),
    Column("x reading", "times_reading", ".2f"),
    Column("RTF", "rtf", ".4f"),
    Column("MFU", "mfu", ".3f"),
)


def measure(
    model: AnyModelConfig,
    samplings: Sequence[SamplingConfig],
    batch: int,
    dtype: torch.dtype,
    rounds: int,
    kernels: KernelsConfig,
) -> dict[str, Any]:
    """The time of a batch's latents with random weights and full texts, for each sampling in several ways, and how far
    each way's latents are from those of the first:

    - "plain": reference operations, modulations computed at every step, guidance as two forward passes;
    - "ours": the selected operations, modulations computed once for all batches, guidance as one forward pass;
    - "ours, compiled": the same with compiled blocks;
    - "plain reading": of the released network, as its description reads, with compiled blocks;
    - "ours, CUDA graph": "ours, compiled" captured once and replayed, on a GPU and if the capture succeeds.

    Raises ValueError if `kernels` asks for what cannot run here.
    """
    kernel_selection.check_kernels(kernels, PRECISIONS.get(dtype, "bf16"), model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    with device:
        plain = build_network(model).to(device, dtype).eval().requires_grad_(False)
    for parameter in plain.parameters():  # weights that start at zero would hide the layers before them
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    table = kernel_selection.read_table(Path(kernels.benchmark_file)) if kernels.benchmark_file else None
    selection = kernel_selection.RELEASED
    if not isinstance(model, ReleasedModelConfig):
        shape = BlockShape.from_model(model, 2 * batch)
        selection = kernel_selection.select_for_shape(kernels, shape, device, dtype, table)[0]
    ours, compiled = (_share_weights(plain).use(selection.ops()) for _ in range(2))
    compile_blocks(compiled)
    reading = PlainReading(plain, compiled=True) if isinstance(plain, ReleasedAudioX) else None
    both = [_condition(model, batch, device, dtype) for _ in range(2)]
    noise = torch.randn(batch, model.latent_frames, model.codec.latent_channels, device=device)
    peak, counts = peak_flops(device, dtype), forward_flops(model, model.text.max_tokens)
    rows: list[dict[str, Any]] = []
    for sampling in samplings:
        ways: dict[str, Callable[[], Tensor]] = {
            "plain": _sample_plainly(plain, sampling, both, noise, dtype),
            "ours": _sample_ours(ours, sampling, both, noise, dtype),
            "ours, compiled": _sample_ours(compiled, sampling, both, noise, dtype),
        }
        if reading:
            ways[READING] = _sample_plainly(reading, sampling, both, noise, dtype)
        with torch.inference_mode():
            if device.type == "cuda" and (replay := _cuda_graph(ways["ours, compiled"])):
                ways["ours, CUDA graph"] = replay
            off = _differences(ways, dtype)
            seconds = time_interleaved(ways, rounds, inner=1, warmup=2, device=device)
        about = {"steps": sampling.steps, "nfe": nfe(sampling), "batch": batch}
        for way in seconds:
            row = about | {"way": way} | _times(way, seconds) | {"off": off[way]}
            row["rtf"] = row["ms"] / 1000 / batch / model.codec.seconds
            row["mfu"] = nfe(sampling) * batch * counts["total"] / (row["ms"] / 1000) / peak
            rows.append(row)
    return {"kernels": selection.names, "rows": rows, "forward_flops": counts}


def _times(way: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Milliseconds of a way, and how many times as fast as the plain ones it is."""
    ratios = [a / b for a, b in zip(seconds["plain"], seconds[way], strict=True)]
    ms = spread(1000 * value for value in seconds[way])
    row = {"ms": ms["median"], "low_ms": ms["low"], "high_ms": ms["high"], "times_plain": statistics.median(ratios)}
    if READING in seconds:
        ratios = [a / b for a, b in zip(seconds[READING], seconds[way], strict=True)]
        row["times_reading"] = statistics.median(ratios)
    return row


def _cuda_graph(call: Callable[[], Tensor]) -> Callable[[], Tensor] | None:
    """`call` captured and replayed, always into the same latents. None if it does what a graph cannot hold."""
    outputs: list[Tensor] = []

    def keep_output() -> None:
        outputs[:] = [call()]

    try:
        replay = capture_graph(lambda: keep_output, 1)
    except RuntimeError as error:
        print(f"no CUDA graph: {error}", file=sys.stderr)
        return None
    (latents,) = outputs

    def again() -> Tensor:
        latents.zero_()  # so that what it holds afterwards comes from the graph
        replay()
        return latents

    return again


def _differences(ways: dict[str, Callable[[], Tensor]], dtype: torch.dtype) -> dict[str, float]:
    """The relative root mean square difference of each way's latents from those of the first. A way that differs too
    much is named and left out of `ways`."""
    latents = {name: call().float().clone() for name, call in ways.items()}
    first = next(iter(latents.values()))
    off = {name: ((x - first).square().mean() / first.square().mean()).sqrt().item() for name, x in latents.items()}
    for name, value in off.items():
        if not value <= TOLERANCES[dtype]:
            print(f"{name}: left out: its latents are off by {value:.2g} of the plain ones", flush=True)
            del ways[name]
    return off


def _share_weights(network: Network) -> Network:
    """Another module with the same tensors."""
    return copy.deepcopy(network, {id(p): p for p in network.parameters()})


def _condition(model: AnyModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """H_c of full texts, and its lengths (B,)."""
    if isinstance(model, ReleasedModelConfig):
        tokens, width = model.released.condition_tokens, model.released.condition_width
    else:
        tokens, width = model.video_tokens + model.codec.frames + model.text.max_tokens, model.fusion.width
    h = torch.randn(batch, tokens, width, device=device, dtype=dtype)
    return h, torch.full((batch,), tokens, device=device)


def _sample_plainly(
    network: Network | PlainReading,
    sampling: SamplingConfig,
    both: list[tuple[Tensor, Tensor]],
    noise: Tensor,
    dtype: torch.dtype,
) -> Callable[[], Tensor]:
    def call() -> Tensor:
        scales = iter(guidance_scales(sampling))

        def velocity(z: Tensor, t: Tensor) -> Tensor:
            v, scale = network.conditioned(*both[0])(z.to(dtype), t).float(), next(scales)
            if scale == 1:
                return v
            v_uncond = network.conditioned(*both[1])(z.to(dtype), t).float()
            return v_uncond + scale * (v - v_uncond)

        return sample(velocity, lambda: noise, sampling)

    return call


def _sample_ours(
    network: Network, sampling: SamplingConfig, both: list[tuple[Tensor, Tensor]], noise: Tensor, dtype: torch.dtype
) -> Callable[[], Tensor]:
    times = torch.tensor(sampling_timesteps(sampling)[:-1], device=noise.device)
    timestep_features = [network.timestep_features(t) for t in times.split(1)]

    def call() -> Tensor:
        steps = iter(timestep_features)

        def conditioned(condition: Tensor, length: Tensor) -> Velocity:
            velocity = network.conditioned(condition, length)
            return lambda z, t: velocity(z.to(dtype), next(steps).expand(len(z)))

        return sample(with_guidance(conditioned, both[0], both[1], guidance_scales(sampling)), lambda: noise, sampling)

    return call


def summary_lines(result: dict[str, Any]) -> list[str]:
    return format_table(result["rows"], COLUMNS)
