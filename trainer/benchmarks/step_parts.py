"""What a training step consists of: its matrix products alone, the time it would take if everything else were free; and
where its time goes, by torch's profiler."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from .summary import Column, format_table

Signature = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # shape and stride of both


class MatmulReplay(TorchDispatchMode):
    """Records the products that are computed inside it; a call computes them again.

    Products of one kind take the same operands every time, which then lie in a cache, so no step is that fast.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.dtype, self.device = dtype, device
        self.counts: Counter[Signature] = Counter()
        self.operands: dict[Signature, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = op.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            a, b = args[-2:]
            self.counts[tuple(a.shape), a.stride(), tuple(b.shape), b.stride()] += 1
        return op(*args, **(kwargs or {}))

    def prepare(self) -> "MatmulReplay":
        for shape_a, stride_a, shape_b, stride_b in self.counts:
            pair = [
                torch.empty_strided(shape, stride, dtype=self.dtype, device=self.device).normal_()
                for shape, stride in ((shape_a, stride_a), (shape_b, stride_b))
            ]
            self.operands[shape_a, stride_a, shape_b, stride_b] = pair[0], pair[1]
        return self

    @property
    def flops(self) -> int:
        """Multiplications and additions of all products."""
        total = 0
        for (shape_a, _, shape_b, _), count in self.counts.items():
            rows, inner, columns = shape_a[-2], shape_a[-1], shape_b[-1]
            total += 2 * count * rows * inner * columns * (shape_a[0] if len(shape_a) == 3 else 1)
        return total

    def __call__(self) -> None:
        for signature, count in self.counts.items():
            a, b = self.operands[signature]
            for _ in range(count):
                torch.matmul(a, b)


def replay_matmuls(call: Callable[[], object], dtype: torch.dtype, device: torch.device) -> MatmulReplay:
    """The products of one call, to be computed in `dtype`."""
    replay = MatmulReplay(dtype, device)
    with replay:
        call()
    return replay.prepare()


# ---- profile

COLUMNS = (
    Column("share", "share", ".3f"),
    Column("ms", "ms", ".3f"),
    Column("calls", "calls", "d"),
    Column("", "name"),
)
SHOWN, KEPT = 12, 60  # rows: of a summary, of a result
NAME = 100  # characters; a kernel's name can have hundreds


def profile_call(call: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """A row per kernel or operator, the longest first: its own milliseconds, calls, and share of all rows' time."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    rows = []
    for event in found.key_averages():
        if on_gpu and event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        micro = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if micro > 0:
            rows.append({"name": event.key[:NAME], "ms": micro / 1000, "calls": event.count})
    whole = sum(row["ms"] for row in rows)
    rows = [{"share": row["ms"] / whole} | row for row in rows]
    return sorted(rows, key=lambda row: -row["ms"])[:KEPT]


def profile_lines(profiles: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The longest rows of each variant."""
    lines = []
    for name, rows in profiles.items():
        lines += ["", f"a step, {name}: where its time goes", *format_table(rows[:SHOWN], COLUMNS)]
    return lines
