"""The matrix products of a training step alone: the time it would take if everything else were free."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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
