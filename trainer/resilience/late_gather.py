"""Rows of whole numbers gathered from all ranks while training continues."""

from collections import deque
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass
class _Row(Generic[T]):
    about: T
    host: Tensor  # (n,) int64
    copied: torch.cuda.Event | None  # when `host` has what was on a GPU
    table: list[Tensor] | None = None  # every rank's row, while or after it is sent
    work: Any = None


class LateGather(Generic[T]):
    """`begin` sends a row of this rank, and a `poll` in a later step returns all ranks' rows. All ranks make the same
    calls. Nobody waits for a device or another rank that is not more than a step behind."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        """`group`: of all ranks, by gloo, which runs on the host; None for a rank alone."""
        self.group = group
        self.rows: deque[_Row[T]] = deque()

    def begin(self, row: Tensor, about: T) -> None:
        """Sends a row (n,) int64, from a GPU in the next `poll`."""
        if row.device.type == "cuda" and torch.cuda.is_available():
            host = torch.empty(row.shape, dtype=row.dtype, pin_memory=True)
            host.copy_(row, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            self.rows.append(_Row(about, host, copied))
        else:
            self.rows.append(_Row(about, row.clone(), None))
            self._send(self.rows[-1])

    def poll(self) -> list[tuple[T, Tensor]]:
        """What `begin` was told of each row that has arrived, with the table (ranks, n). Call it once per step."""
        arrived = []
        for row in list(self.rows):
            if row.table is None:
                self._send(row)
                continue
            if row.work is not None:
                row.work.wait()
            self.rows.remove(row)
            arrived.append((row.about, torch.stack(row.table)))
        return arrived

    def finish(self) -> list[tuple[T, Tensor]]:
        """Waits for all rows."""
        arrived = []
        while self.rows:
            arrived += self.poll()
        return arrived

    def _send(self, row: _Row[T]) -> None:
        if row.copied is not None:
            row.copied.synchronize()  # a step ago: it is over
        if self.group is None:
            row.table = [row.host]
            return
        row.table = [torch.empty_like(row.host) for _ in range(self.group.size())]
        row.work = dist.all_gather(row.table, row.host, self.group, async_op=True)
