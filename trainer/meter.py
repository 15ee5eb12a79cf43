"""Means of what a training step reports, over samples and ranks, read only when they are logged."""

import torch
from torch import Tensor


class Meter:
    """Sums stay on the device; all ranks add the same names in the same order."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor) -> None:
        """values (B,), one a sample."""
        values = values.detach().float()
        total = torch.stack((values.sum(), torch.full_like(values[0], len(values))))
        self.sums[name] = self.sums[name] + total if name in self.sums else total

    def read(self) -> dict[str, float]:
        """The means since the last call. All ranks call this."""
        if not self.sums:
            return {}
        table = torch.stack(list(self.sums.values()))
        torch.distributed.all_reduce(table)
        result = {name: total / count for name, (total, count) in zip(self.sums, table.tolist(), strict=True)}
        self.sums = {}
        return result
