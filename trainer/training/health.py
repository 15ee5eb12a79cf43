"""Whether a run is healthy: losses and skipped steps since the last checkpoint, and the samples that a spike came from.

Sums stay on the device. They are read for a line of the log, for a checkpoint, and when a step was skipped, for which
the host has waited already.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.english import first
from ..data.batches import Batch

SPIKE = 10.0  # times the mean of its kind of step: a loss worth a line in the log
NAMED = 8  # samples in a message
# Kinds of steps whose loss is a regression's: above 0 and comparable over time. Of adversarial losses neither holds.
REGRESSIONS = ("model", "warm_start", "fake_warm_up", "fake")


class StepResult(NamedTuple):
    """The result of a training step, for the loop."""

    role: str  # which model was trained
    applied: bool  # false where a gradient was not finite and the weights were not updated
    values: dict[str, float]
    flops_per_sample: int
    sample_losses: Tensor  # (B,): of this rank's samples, on the device


class DivergedError(FloatingPointError):
    """Training diverged. All ranks raise it."""


class Health:
    """The health of a run's roles since its last checkpoint. All ranks make the same calls."""

    def __init__(self, max_skipped: int, baseline: dict[str, float]) -> None:
        """`max_skipped` steps of a role in a row end the run. `baseline`: mean losses of the last healthy
        checkpoint."""
        self.max_skipped, self.baseline = max_skipped, baseline
        self.in_a_row: dict[str, int] = {}  # skipped steps of each role
        self.skipped = 0  # since the last checkpoint
        self.sums: dict[str, Tensor] = {}  # by kind of step: losses of the samples of applied steps
        self.counts: dict[str, int] = {}
        self.confirmed = False  # a step from the last healthy checkpoint was finite
        # Since the last line of the log, by kind: the largest loss, its step, and which sample it is of.
        self.largest: dict[str, Tensor] = {}
        self.names: dict[int, tuple[str, ...]] = {}  # the samples of these steps

    def step(self, kind: str, result: StepResult, step: int, batch: Batch) -> str:
        """Adds a step. Returns a sentence if it was skipped, otherwise "". Raises DivergedError at `max_skipped`
        skipped steps of a role in a row."""
        if result.applied:
            self.in_a_row[result.role], self.confirmed = 0, True
            self._add(kind, result.sample_losses, step, batch)
            return ""
        self.skipped += 1
        count = self.in_a_row[result.role] = self.in_a_row.get(result.role, 0) + 1
        source = _spike_source(result.sample_losses, _sample_names(batch))
        if count >= self.max_skipped:
            role = "" if result.role == "model" else f"{result.role}."
            raise DivergedError(
                f"{count} steps in a row, to step {step}, had a loss or gradient that is not finite; in the last one "
                f"{source}. Lower {role}optimizer.lr, or look at these samples"
            )
        return (
            f"step {step}: the gradient is not finite on some rank; no rank updated its weights ({count} in a row); "
            f"{source}"
        )

    def _add(self, kind: str, losses: Tensor, step: int, batch: Batch) -> None:
        losses = losses.float()
        largest, index = losses.max(0)
        latest = torch.stack((largest, torch.full_like(largest, step), index.to(largest.dtype)))
        if kind in self.sums:
            self.sums[kind] += losses.sum()
        else:
            self.sums[kind], self.counts[kind] = losses.sum(), 0
        self.counts[kind] += len(losses)
        former = self.largest.get(kind)
        self.largest[kind] = latest if former is None else torch.where(largest > former[0], latest, former)
        self.names[step] = _sample_names(batch)

    def _means(self) -> dict[str, float]:
        if not self.sums:
            return {}
        table = torch.stack(list(self.sums.values())).double()
        dist.all_reduce(table)
        counts = [count * dist.get_world_size() for count in self.counts.values()]
        return {kind: total / n for kind, total, n in zip(self.sums, table.tolist(), counts, strict=True)}

    def spikes(self) -> Iterator[str]:
        """A sentence per kind of step in which a sample's loss was `SPIKE` times the mean, since the last call."""
        means = self.baseline | self._means()  # a checkpoint since the spike has reset the latter
        own = {}
        for kind, latest in self.largest.items():
            loss, step, index = latest.tolist()
            if kind in REGRESSIONS and loss > SPIKE * means.get(kind, math.inf) > 0:
                own[kind] = loss, int(step), self.names[int(step)][int(index)]
        self.largest, self.names = {}, {}
        gathered: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, own)
        for kind in means:
            found = [spikes[kind] for spikes in gathered if kind in spikes]
            if found:
                loss, step, sample = max(found)
                yield (
                    f"a spike: the loss of sample {sample} was {loss:.4g} in step {step}, {loss / means[kind]:.0f} "
                    f"times the mean"
                )

    def summarize_and_reset(self) -> dict[str, Any]:
        """The values for a checkpoint's manifest, of the steps since the checkpoint before: mean losses by kind of
        step, how many steps were skipped, and whether the run is healthy. Resets them."""
        means = self._means()
        losses = {kind: mean for kind, mean in means.items() if math.isfinite(mean)}
        risen = {k: losses[k] / self.baseline[k] for k in losses if k in REGRESSIONS and self.baseline.get(k)}
        usual = len(losses) == len(means) and all(ratio <= SPIKE for ratio in risen.values())
        healthy = usual and not any(self.in_a_row.values())
        summary = {"healthy": healthy, "losses": losses, "skipped_steps": self.skipped}
        if healthy:
            self.baseline, self.confirmed = self.baseline | losses, False
        self.sums, self.counts, self.skipped = {}, {}, 0
        return summary


def _spike_source(losses: Tensor, names: tuple[str, ...]) -> str:
    """Names the samples whose losses are not finite, over all ranks; otherwise the one with the largest. All ranks call
    this."""
    gathered: list[list[tuple[float, str]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, list(zip(losses.tolist(), names, strict=True)))
    samples = [pair for pairs in gathered for pair in pairs]
    broken = [name for loss, name in samples if not math.isfinite(loss)]
    if not broken:
        loss, name = max(samples)
        return f"every sample's loss is finite; the largest, {loss:.4g}, is that of {name}"
    if len(broken) == len(samples) > 1:
        return f"the loss of all {len(samples)} samples is not finite, so it is the weights rather than a sample"
    return f"the loss is not finite for {first(broken, NAMED)}"


def _sample_names(batch: Batch) -> tuple[str, ...]:
    """Each sample's id and stream."""
    if not batch.streams:
        return batch.ids
    return tuple(f"{name} of {stream}" for name, stream in zip(batch.ids, batch.streams, strict=True))
