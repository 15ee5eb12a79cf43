"""Tiles of the joint attention's kernels, tried on the GPU that is here; the fastest can go into kernels/tiles.json."""

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from typing import Any

import torch
import triton
from torch import Tensor

from audiox_trainer.kernels.device import capability
from audiox_trainer.kernels.joint_attention import StreamInput, launch_backward, launch_forward
from audiox_trainer.kernels.tiles import KERNELS, AttentionTiles, Tiles, attention_tiles, write_tiles
from audiox_trainer.models.config import ModelConfig
from audiox_trainer.trainer.benchmarks.summary import Column, format_table
from audiox_trainer.trainer.engine.kernel_cases import BlockShape, kernel_cases
from audiox_trainer.trainer.engine.timing import capture_graph, time_graphs, time_interleaved

CANDIDATES: dict[str, Sequence[Tiles]] = {
    "forward": [
        Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 4), Tiles(64, 32, 4, 3), Tiles(64, 128, 4, 2),
        Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 3), Tiles(128, 32, 8, 3), Tiles(128, 128, 8, 2),
    ],
    "queries": [
        Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 3), Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 3), Tiles(128, 64, 8, 2),
        Tiles(128, 32, 8, 2), Tiles(128, 64, 8, 1),
    ],
    "keys": [
        Tiles(32, 64, 4, 2), Tiles(32, 64, 4, 3), Tiles(64, 64, 4, 1), Tiles(64, 64, 4, 2), Tiles(32, 128, 8, 2),
        Tiles(64, 128, 8, 1), Tiles(64, 128, 8, 2),
    ],
}  # fmt: skip
TOLERANCE = 5e-2  # of the largest value
COLUMNS = (
    Column("kernel", "kernel"),
    Column("queries", "queries"),
    Column("keys", "keys"),
    Column("warps", "warps"),
    Column("stages", "stages"),
    Column("ms", "ms", ".3f"),
    Column("highest", "high_ms", ".3f"),
)


def measure(
    model: ModelConfig,
    batch: int,
    dtype: torch.dtype,
    rounds: int,
    inner: int,
    write: bool,
    candidates: dict[str, Sequence[Tiles]] = CANDIDATES,
) -> dict[str, Any]:
    """`rows` are the times of the forward pass ("forward") and of the whole backward pass ("queries", "keys"), in which
    one kernel's tiles vary; `tiles` the fastest of each kernel, `failed` what does not run here or computes otherwise.

    Raises ValueError without a GPU, unless Triton's interpreter is on, whose times mean nothing.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not triton.knobs.runtime.interpret:
        raise ValueError("tiles are timed on a GPU, and none is here; TRITON_INTERPRET=1 tries the command on a CPU")
    if dtype == torch.float32:
        raise ValueError("dtype: fp32; the table of tiles is for bf16 and fp16")
    shape, gpu = BlockShape.from_model(model, batch), capability(device)
    tiles = attention_tiles(shape.head_width, dtype, gpu)
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    call = attention_calls(shape, device, dtype)
    for kernel in KERNELS:
        trials = {t: replace(tiles, **{kernel: t}) for t in (getattr(tiles, kernel), *candidates[kernel])}
        seconds, wrong = time_trials(kernel, trials, call, rounds, inner, device)
        failed += [f"{kernel} {astuple(t)}: {why}" for t, why in wrong.items()]
        for t, values in seconds.items():
            size = {"queries": t.queries, "keys": t.keys, "warps": t.num_warps, "stages": t.num_stages}
            ms = {"ms": statistics.median(values), "low_ms": min(values), "high_ms": max(values)}
            rows.append({"kernel": kernel} | size | {name: 1000 * value for name, value in ms.items()})
        if seconds:
            tiles = trials[min(seconds, key=lambda t: statistics.median(seconds[t]))]
    if write:
        write_tiles(gpu, shape.head_width, tiles)
    return {
        "capability": list(gpu),
        "head_width": shape.head_width,
        "rows": rows,
        "failed": failed,
        "tiles": {kernel: list(astuple(getattr(tiles, kernel))) for kernel in KERNELS},
    }


Call = Callable[[str, AttentionTiles], tuple[Tensor, ...]]


def attention_calls(shape: BlockShape, device: torch.device, dtype: torch.dtype) -> Call:
    """The forward pass ("forward") or the backward pass (any other kernel) with the tiles that are given."""
    case = kernel_cases(shape, device, dtype)["joint_attention"]
    inputs: list[Tensor] = []

    def take(latent: StreamInput, condition: StreamInput, length: Tensor) -> tuple[Tensor, ...]:
        inputs.extend(t.detach() for t in (*latent.tensors(), *condition.tensors(), length.to(torch.int32)))
        return ()

    case.call(take, *case.inputs)
    a, b, c, d, e, f, g, h, i, j, length = inputs
    first = attention_tiles(shape.head_width, dtype, capability(device))
    out_x, out_c, lse = launch_forward(a, b, c, d, e, f, g, h, i, j, length, first.forward)

    def call(kernel: str, tiles: AttentionTiles) -> tuple[Tensor, ...]:
        if kernel == "forward":
            return launch_forward(a, b, c, d, e, f, g, h, i, j, length, tiles.forward)
        return launch_backward(a, b, c, d, e, f, g, h, i, j, length, out_x, out_c, lse, out_x, out_c, tiles)

    return call


def time_trials(
    kernel: str, trials: dict[Tiles, AttentionTiles], call: Call, rounds: int, inner: int, device: torch.device
) -> tuple[dict[Tiles, list[float]], dict[Tiles, str]]:
    """Seconds of each trial, and why others were left out. The first one's results are what the others' have to be."""
    calls: dict[Tiles, Callable[[], object]] = {}
    failed: dict[Tiles, str] = {}
    expected: tuple[Tensor, ...] = ()
    for t, tiles in trials.items():
        try:
            results = call(kernel, tiles)
            expected = expected or results
            if (wrong := max(map(difference, results, expected))) > TOLERANCE:
                raise ValueError(f"results are off by {wrong:.2g} of the largest value")
            repeat = functools.partial(call, kernel, tiles)
            calls[t] = repeat if device.type == "cpu" else capture_graph(functools.partial(_same, repeat), inner)
        except Exception as error:  # of Triton or the driver: too little shared memory, say
            failed[t] = (str(error).strip() or type(error).__name__).splitlines()[0]
    if device.type == "cuda":
        return time_graphs(calls, rounds, inner, device), failed
    return time_interleaved(calls, rounds, inner, 0, device), failed


def _same(call: Callable[[], object]) -> Callable[[], object]:
    return call


def difference(actual: Tensor, expected: Tensor) -> float:
    scale = expected.float().abs().max().clamp_min(1e-3)
    return ((actual.float() - expected.float()).abs().max() / scale).item()


def summary_lines(result: dict[str, Any]) -> list[str]:
    best = ", ".join(f"{kernel} {tiles}" for kernel, tiles in result["tiles"].items())
    return [*format_table(result["rows"], COLUMNS), f"fastest: {best}", *(f"left out: {w}" for w in result["failed"])]
