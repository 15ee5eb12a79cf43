"""Comparisons of the ranks with one another while they train: their weights, their results and their speed.

Rows of numbers are gathered while training continues, and judged a step or two later. Before a save, and before a run
goes back because it diverged, everything is compared at once.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import torch
import torch.distributed as dist
from torch import Tensor

from ..checkpoint.load import TrainedModel
from ..core.config import ChecksConfig
from ..data.batches import Batch
from ..engine.process_group import World
from ..engine.step_times import PARTS
from ..engine.zero import FrozenModel
from ..resilience.corruption import Repetitions, check_weights
from ..resilience.late_gather import LateGather
from ..resilience.rank_names import rank_names
from ..resilience.stop_signal import StoppedError
from ..resilience.stragglers import Comparison, History

TIMED = 5  # steps before a comparison of times, of which each is measured


class CheckedTrainer(Protocol):
    """What is compared of a training."""

    roles: dict[str, TrainedModel]
    frozen: dict[str, FrozenModel]
    total: int  # steps of the whole run

    def fingerprint(self, step: int, batch: Batch) -> Tensor:
        """Checksums (2,) of the losses and the gradient of a step's first micro-batch, from which nothing is learned.
        They are the same each time."""
        ...


class RankChecks:
    """All ranks make the same calls: `before` and `after` each step, `compare_now` before a save."""

    def __init__(self, config: ChecksConfig, trainer: CheckedTrainer, world: World, say: Callable[[str], None]) -> None:
        self.config, self.trainer, self.world, self.say = config, trainer, world, say
        self.names = rank_names(world.device)
        # A group of its own, so that its operations are never paired with others.
        group = dist.new_group(backend="gloo") if world.ranks > 1 else None
        self.weights, self.repeats, self.times = (LateGather[int](group) for _ in range(3))
        self.repetitions, self.history = Repetitions(), History(self.names)
        self.values: dict[str, float] = {}  # of the last comparison of times, for the next line of the log
        self.suspicious = False  # the last step was skipped

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.world.times.stop()
        if error is None or isinstance(error, StoppedError):  # on all ranks
            for line in self.history.summary():
                self.say(line)

    def before(self, step: int, batch: Batch) -> None:
        """Before step number `step`: computes a micro-batch twice if it is time for that."""
        done = step + 1
        if self._compares_weights(done):
            for role in self.trainer.roles.values():
                role.engine.wants_checksum = True
        if _due(self.config.repeat_every, done):
            self.repeats.begin(torch.cat([self._fingerprint(step, batch) for _ in range(2)]), step)

    def after(self, done: int, applied: bool) -> None:
        """After `done` steps. Raises FaultyError if a rank of a step before has wrong weights or results."""
        self._judge(self.weights.poll(), self.repeats.poll())
        self._compare_times(self.times.poll())
        if self._compares_weights(done):
            self._begin_weights(done - 1)
        self.suspicious = not applied
        self.world.times.end_step()
        last = done == self.trainer.total
        if _due(self.config.stragglers_every, done) or last:
            self._begin_times(done)
        if last:
            self._compare_times(self.times.finish())
        every = self.config.stragglers_every
        self.world.times.active = every > 0 and (-(done + 1) % every < TIMED or self.trainer.total - done <= TIMED)

    def compare_now(self, done: int) -> None:
        """Compares the present weights, and waits for all that is not judged yet. Raises FaultyError."""
        if self.config.weights_every:
            self._begin_weights(done - 1)
        self._judge(self.weights.finish(), self.repeats.finish())

    def metrics(self) -> dict[str, float]:
        """The values of a comparison of times since the last call."""
        values, self.values = self.values, {}
        return values

    def _compares_weights(self, done: int) -> bool:
        every = self.config.weights_every
        return _due(every, done) or (self.suspicious and every > 0)

    def _fingerprint(self, step: int, batch: Batch) -> Tensor:
        device = self.world.device
        with torch.random.fork_rng([device] if device.type == "cuda" and torch.cuda.is_available() else []):
            return self.trainer.fingerprint(step, batch)

    def _begin_weights(self, step: int) -> None:
        sums = [role.engine.take_checksum() for role in self.trainer.roles.values()]
        sums += [model.checksum() for model in self.trainer.frozen.values()]
        if found := [value for value in sums if value is not None]:
            self.weights.begin(torch.stack(found), step)
            present = zip([*self.trainer.roles, *self.trainer.frozen], sums, strict=True)
            self.models = [name for name, value in present if value is not None]

    def _begin_times(self, done: int) -> None:
        if medians := self.world.times.medians():
            self.times.begin(torch.tensor(medians, dtype=torch.float64).view(torch.int64), done)

    def _judge(self, weights: list[tuple[int, Tensor]], repeats: list[tuple[int, Tensor]]) -> None:
        for step, table in weights:
            check_weights(self.models, table.tolist(), step, self.names)
        for step, table in repeats:
            if sentence := self.repetitions.check(table.tolist(), step, self.names):
                self.say(sentence)

    def _compare_times(self, arrived: list[tuple[int, Tensor]]) -> None:
        for done, table in arrived:
            comparison = Comparison(PARTS, table.view(torch.float64).tolist())
            self.values = comparison.metrics()
            if sentence := self.history.add(comparison):
                self.say(f"step {done}: {sentence}")


def _due(every: int, done: int) -> bool:
    return every > 0 and done % every == 0
