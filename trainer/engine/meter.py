"""Means over samples and ranks, and speeds, of the steps since the last line of the log."""

import time

import torch
from torch import Tensor


class Meter:
    """Means of named values. Sums stay on the device; all ranks add the same names in the same order."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Adds values (B,), one per sample."""
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


class NoiseBins:
    """Mean loss by noise level, summed on the device and read only for the log."""

    COUNT = 10

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2, self.COUNT, device=device)

    def add(self, losses: Tensor, t: Tensor) -> None:
        """losses (B,), t (B,) in [0, 1]."""
        index = (t.float() * self.COUNT).long().clamp(0, self.COUNT - 1)
        self.sums[0].index_add_(0, index, losses.detach().float())
        self.sums[1].index_add_(0, index, torch.ones_like(t, dtype=torch.float32))

    def read(self) -> dict[str, float]:
        """The mean over all ranks' samples since the last call, in total and per bin. All ranks call this."""
        torch.distributed.all_reduce(self.sums)
        total, count = self.sums.sum(1).tolist()
        values = {"loss": total / max(count, 1.0)}
        for i, (loss, n) in enumerate(self.sums.T.tolist()):
            if n:
                values[f"loss_by_noise/{(i + 0.5) / self.COUNT:.2f}"] = loss / n
        self.sums.zero_()
        return values


class Pace:
    """The speed of the steps since the last line of the log."""

    def __init__(self, batch: int, peak: float) -> None:
        """Steps have `batch` samples, and all ranks together can do `peak` FLOP/s."""
        self.batch, self.peak = batch, peak
        self.steps, self.flops, self.since = 0, 0, time.perf_counter()

    def step(self, flops_per_sample: int) -> None:
        self.steps += 1
        self.flops += flops_per_sample * self.batch

    def read(self, waited: float) -> dict[str, float]:
        """Samples per second, MFU, and the share of the time that was `waited` (seconds) for batches. Resets the
        meter."""
        now = time.perf_counter()
        seconds, steps, flops = now - self.since, self.steps, self.flops
        self.steps, self.flops, self.since = 0, 0, now
        speed, mfu = steps * self.batch / seconds, flops / seconds / self.peak
        return {"samples_per_s": speed, "mfu": mfu, "reader_wait": waited / seconds}
