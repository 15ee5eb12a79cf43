"""Scenarios of tests/training/test_released.py: training and distillation of the released network, on every rank."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import deepspeed
import torch

from audiox_trainer.models.int8 import int8_tensors
from audiox_trainer.trainer.checkpoint.initial_weights import init_metadata, read_initial_weights
from audiox_trainer.trainer.checkpoint.weights_folder import load_weights
from audiox_trainer.trainer.core.config import BaseConfig, PretrainConfig
from audiox_trainer.trainer.core.distill_config import DistillConfig
from audiox_trainer.trainer.distillation.updates import Distillation
from audiox_trainer.trainer.training.loop import train
from audiox_trainer.trainer.training.pretrain import Pretraining
from tests.helpers import scenarios
from tests.helpers.released_weights import released_config, released_distill_config
from tests.helpers.scenarios import MadeUp, Stopped, StoppedAt, about, digest, made_up_curve, save

DISTILL = "distill"  # among the overrides, for a distillation


def configure(weights: Path, *overrides: str) -> BaseConfig:
    others = [override for override in overrides if override != DISTILL]
    return (released_distill_config if DISTILL in overrides else released_config)(weights, *others)


def begun(config: PretrainConfig) -> Pretraining:
    return Pretraining(config, scenarios.WORLD, initial=read_initial_weights(config.init.weights))


def losses(folder: Path, config: PretrainConfig) -> dict[str, Any]:
    """Trains on synthetic samples: the loss and the gradient norm of every step."""
    task = begun(config)
    curve = made_up_curve(task, config)
    save(folder, config.training.steps, task.roles, config)
    held = asdict(task.engine.bytes(task.ema.values))
    rest = [p for p in task.model.parameters() if not p.requires_grad]
    with deepspeed.zero.GatheredParameters(rest, enabled=config.zero.stage == 3):
        frozen = digest([p.clone() for p in rest] + list(int8_tensors(task.model)))
    task.engine.destroy()
    return {"curve": curve, "held": held, "frozen": frozen}


def whole(folder: Path, config: PretrainConfig, stop: int = 0, resume: bool = False) -> dict[str, Any]:
    """A run; with `stop` it breaks off before that batch. A resumed one has no weights to begin from, unless it trains
    adapters of them."""
    task = Pretraining(config, scenarios.WORLD) if resume and not config.lora else begun(config)
    reader = StoppedAt(MadeUp(config), stop) if stop else MadeUp(config)
    try:
        metadata = about(config) | init_metadata(task.init_record, None, scenarios.WORLD.rank)
        train(task, reader, config, scenarios.WORLD, folder, resume, 1e12, metadata)
    except Stopped:
        return {"stopped": stop}
    finally:
        task.engine.destroy()
    return {}


def rounds(folder: Path, config: DistillConfig, weights: str) -> dict[str, Any]:
    """A distillation from the first update to the last: which roles each one changed, and its values."""
    task = Distillation(config, load_weights(Path(weights)), scenarios.WORLD)
    batches, rows = MadeUp(config).batches(0), []
    before = {name: digest(engine.shards()) for name, engine in task.engines.items()}
    for update in range(task.total):
        result = task.step(update, next(batches))
        after = {name: digest(engine.shards()) for name, engine in task.engines.items()}
        changed = [name for name in after if after[name] != before[name]]
        rows.append([task.kind(update), changed, result.applied, result.flops_per_sample])
        before = after
    values = task.metrics()
    save(folder, task.total, task.roles, config)
    names, waves = task.preview()
    task.destroy()
    finite = bool(torch.isfinite(waves).all()) and all(v == v for v in values.values())
    return {"rows": rows, "finite": finite, "waves": [names, list(waves.shape)]}


SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {f.__name__: f for f in (losses, whole, rounds)}


if __name__ == "__main__":
    scenarios.main(SCENARIOS, configure)
