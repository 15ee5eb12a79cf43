"""Runs of two ranks with a fault on one of them, for tests/training/test_rank_checks.py."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.core.cli import exit_code_of
from audiox_trainer.trainer.core.config import BaseConfig, PretrainConfig
from audiox_trainer.trainer.core.distill_config import DistillConfig
from audiox_trainer.trainer.data.batches import Batch
from audiox_trainer.trainer.distillation.updates import Distillation
from audiox_trainer.trainer.resilience.corruption import FaultyError
from audiox_trainer.trainer.training.health import StepResult
from audiox_trainer.trainer.training.logs import Logs
from audiox_trainer.trainer.training.loop import train
from audiox_trainer.trainer.training.pretrain import Pretraining
from tests.helpers import scenarios
from tests.helpers.distillation_scenarios import begun
from tests.helpers.faulty_rank import flip_weight
from tests.helpers.scenarios import MadeUp, about
from tests.helpers.small_config import small_config, small_distill_config

Task = Pretraining | Distillation
SLEEP = 0.5  # seconds, of a slow rank, for each micro-batch


def flipped_weight(task: Task, at: int, model: str) -> None:
    """A bit of this rank's copy of the weights flips while it takes a step."""
    step, models = task.step, {name: role.engine.module for name, role in task.roles.items()}
    models |= {name: frozen.module for name, frozen in task.frozen.items()}

    def stepped(number: int, batch: Batch) -> StepResult:
        if number == at:
            flip_weight(models[model])
        return step(number, batch)

    task.step = stepped


def flipped_result(task: Task, at: int, model: str) -> None:
    """A bit of the weights is wrong while this rank computes a micro-batch the second time, and right again after."""
    fingerprint, calls, module = task.fingerprint, [], task.roles[model].engine.module

    def wrong(number: int, batch: Batch) -> Tensor:
        calls.append(number)
        if number != at or calls.count(at) != 2:
            return fingerprint(number, batch)
        # At stage 3 weights as small as these stay gathered.
        pieces = [p.data.view(-1) if p.numel() else p.ds_tensor.data.view(-1) for p in module.parameters()]
        own = [piece.clone() for piece in pieces]
        for piece in pieces:
            piece.mul_(1.01)
        result = fingerprint(number, batch)
        for piece, before in zip(pieces, own, strict=True):
            piece.copy_(before)
        return result

    task.fingerprint = wrong


def another_order(task: Task, at: int, model: str) -> None:
    """The gradient comes out differently each time."""
    fingerprint = task.fingerprint
    task.fingerprint = lambda number, batch: fingerprint(number, batch) + torch.tensor([0, time.monotonic_ns()])


def slow_forward(task: Task, at: int, model: str) -> None:
    losses = task.losses

    def slowly(*arguments: Any) -> Any:
        time.sleep(SLEEP)
        return losses(*arguments)

    task.losses = slowly


FAULTS: dict[str, Callable[[Task, int, str], None]] = {
    f.__name__: f for f in (flipped_weight, flipped_result, another_order, slow_forward)
}


def run(
    folder: Path, config: BaseConfig, fault: str = "", at: int = 0, model: str = "model", ranks: tuple[int, ...] = (1,)
) -> dict[str, Any]:
    """A run on made-up samples, with a fault on some ranks: how it ended, what was said, which checkpoints are left."""
    assert isinstance(config, (PretrainConfig, DistillConfig))
    world = scenarios.WORLD
    task = Pretraining(config, world) if isinstance(config, PretrainConfig) else begun(config)
    if fault and world.rank in ranks:
        FAULTS[fault](task, at, model)
    said: list[str] = []
    result: dict[str, Any] = {"said": said}
    with mock.patch.object(Logs, "say", lambda self, text: said.append(text)):
        try:
            train(task, MadeUp(config), config, world, folder, False, 1e12, about(config))
        except FaultyError as error:
            result |= {"error": str(error), "code": exit_code_of(error)}
    for role in task.roles.values():
        role.engine.destroy()
    return result | {"left": sorted(path.name for path in (folder / load.FOLDER).glob("*"))}


def configured(scenes: Path, *overrides: str) -> BaseConfig:
    """A distillation's configuration if an override is of its student, otherwise a pretraining's."""
    distills = any(override.startswith("student.") for override in overrides)
    return (small_distill_config if distills else small_config)(scenes, *overrides)


if __name__ == "__main__":
    scenarios.main({"run": run}, configured)
