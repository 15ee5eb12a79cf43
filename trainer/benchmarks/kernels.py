"""Every operation of a block at a model's shapes: each implementation that runs here against the alternatives."""

import importlib
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from ...kernels.concatenated_attention import (
    concatenate_streams,
    joint_attention_sdpa,
    joint_attention_varlen,
    split_streams,
)
from ...kernels.joint_attention import StreamInput
from ...kernels.ops import BACKENDS, OPS, available
from ...models.config import ModelConfig
from ..core.hardware import keep_freed_memory, peak_flops
from ..engine.kernel_cases import BlockShape, KernelCase, condition_lengths, kernel_cases
from ..engine.kernel_selection import as_in_run, table_row, time_implementations
from ..engine.timing import time_interleaved
from .summary import Column, format_table

COLUMNS = (
    Column("operation", "op"),
    Column("by", "backend"),
    Column("forward ms", "forward_ms", ".3f"),
    Column("of limit", "forward_of_limit", ".2f"),
    Column("backward ms", "backward_ms", ".3f"),
    Column("of limit", "backward_of_limit", ".2f"),
)


def measure(model: ModelConfig, batch: int, dtype: torch.dtype, rounds: int, inner: int) -> dict[str, Any]:
    """`rows` are what `kernels.benchmark_file` of a configuration can name. `alternatives` are implementations that no
    run can select. `failed` says what does not run here or differs from the reference.

    Rows and alternatives have the share of the physical limit that they reach: the least bytes at this machine's
    copying speed, or the operations at its speed of matrix products, whichever takes longer.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()  # as a training does
    shape = BlockShape.from_model(model, batch)
    bandwidth, peak = copy_bandwidth(device), peak_flops(device, dtype)
    rows: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    failed: list[str] = []
    for op, case in kernel_cases(shape, device, dtype).items():
        backends = available(op, device, dtype, shape.head_width)
        implementations: dict[str, Callable[..., Any]] = {b: as_in_run(op, b, True) for b in backends}
        implementations["reference, eager"] = BACKENDS[op]["reference"]
        if op == "joint_attention" and device.type == "cuda":
            others_here = alternatives(shape, device)
            implementations |= {name: torch.compile(call, dynamic=False) for name, call in others_here.items()}
        found, wrong = time_implementations(op, case, implementations, device, rounds, inner)
        failed += [f"{op} by {name}: {why}" for name, why in wrong.items()]
        limits = limit(case, bandwidth, peak)
        for name, seconds in found.items():
            facts = table_row(op, name, shape, device, dtype, *seconds)
            for way, (values, least) in zip(("forward", "backward"), zip(seconds, limits, strict=True), strict=True):
                facts[f"{way}_low_ms"], facts[f"{way}_high_ms"] = 1000 * min(values), 1000 * max(values)
                facts[f"{way}_of_limit"] = least / statistics.median(values)
            (rows if name in backends else others).append(facts)
    assert {r["op"] for r in rows} | {why.split()[0] for why in failed} >= set(OPS)
    return {
        "copy_bytes_per_s": bandwidth,
        "peak_flops": peak,
        "rows": rows,
        "alternatives": others,
        "failed": failed,
    }


def limit(case: KernelCase, bandwidth: float, peak: float) -> tuple[float, float]:
    """The least seconds that forward and backward can take on this machine."""
    return (
        max(case.forward_bytes / bandwidth, case.forward_flops / peak),
        max(case.backward_bytes / bandwidth, case.backward_flops / peak),
    )


def copy_bandwidth(device: torch.device) -> float:
    """Bytes/s, read and written together, of copying a large tensor: the best of several."""
    a = torch.empty(2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    seconds = time_interleaved({"copy": lambda: b.copy_(a)}, rounds=10, inner=4, warmup=2, device=device)
    return 2 * a.numel() / min(seconds["copy"])


def alternatives(shape: BlockShape, device: torch.device) -> dict[str, Callable[..., tuple[Tensor, Tensor]]]:
    """Joint attention in ways that no run can select. SDPA's flash kernel takes no mask; torch's function for sequences
    of several lengths has the same kernel and needs none."""
    found: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
        "sdpa, efficient": sdpa_by(SDPBackend.EFFICIENT_ATTENTION),
        "sdpa, math": sdpa_by(SDPBackend.MATH),
        "flex_attention": flex(shape, device),
    }
    try:
        varlen = importlib.import_module("torch.nn.attention.varlen").varlen_attn
        found["torch's flash, sequences"] = lambda *streams: joint_attention_varlen(varlen, *streams)
    except (ImportError, AttributeError):  # before torch 2.10
        pass
    return found


def sdpa_by(backend: SDPBackend) -> Callable[..., tuple[Tensor, Tensor]]:
    """`joint_attention_sdpa` by one kernel of SDPA."""

    def attend(*streams: Any) -> tuple[Tensor, Tensor]:
        with sdpa_kernel(backend):
            return joint_attention_sdpa(*streams)

    return attend


def flex(shape: BlockShape, device: torch.device) -> Callable[..., tuple[Tensor, Tensor]]:
    """FlexAttention over the concatenated streams. Its block mask, for the case's lengths, is made once; it is neither
    timed nor compiled."""
    n, ends = shape.latent + shape.condition, shape.latent + condition_lengths(shape, device)

    def inside(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k < ends[b]

    mask = create_block_mask(inside, shape.batch, None, n, n, device=str(device))

    def attend(latent: StreamInput, condition: StreamInput, condition_length: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (x.transpose(1, 2) for x in concatenate_streams(latent, condition))
        return split_streams(flex_attention(q, k, v, block_mask=mask).transpose(1, 2), shape.latent)

    return attend


def summary_lines(result: dict[str, Any]) -> list[str]:
    speeds = f"copying {result['copy_bytes_per_s'] / 1e9:.0f} GB/s, products {result['peak_flops'] / 1e12:.3g} TFLOP/s"
    rows = sorted(result["rows"] + result["alternatives"], key=lambda row: row["op"])
    return [speeds, *format_table(rows, COLUMNS), *(f"left out: {why}" for why in result["failed"])]
