"""One rank of a launch of tests/distillation: scenarios of distillation."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from audiox_turbo.models.audiox import AudioX
from audiox_turbo.trainer.command import code_of
from audiox_turbo.trainer.distill import Distillation
from audiox_turbo.trainer.distill_config import DistillConfig
from audiox_turbo.trainer.loop import Batches, restore, train
from audiox_turbo.trainer.stopping import StoppedError
from tests import ranks
from tests.models import stirred
from tests.ranks import MadeUp, Stopped, StoppedAt, about, ask, digest, save
from tests.small import small_distill_config


def teacher(config: DistillConfig) -> AudioX:
    """Weights that answer, which fresh ones do not: their last projection is zero."""
    torch.manual_seed(11)
    return stirred(config.model)


def begun(config: DistillConfig) -> Distillation:
    return Distillation(config, teacher(config), ranks.WORLD)


def digests(task: Distillation) -> dict[str, str]:
    """All that each role owns on this rank, and the teacher's weights."""
    found = {}
    for name, role in task.roles.items():
        for kind, shards in role.state().items():
            found[f"{name}/{kind}"] = digest(shards)
        found[f"{name}/updates"] = str(role.engine.updates())
    # Where ZeRO-3 shards it, what this rank holds of a parameter is its `ds_tensor`.
    held = [getattr(p, "ds_tensor", p) for p in task.teacher.frozen.module.parameters()]
    return found | {"teacher/weights": digest(held)}


def watched(task: Distillation) -> set[str]:
    """A set that fills with the roles whose weights a gradient arrives at."""
    reached: set[str] = set()
    models = {name: role.engine.module for name, role in task.roles.items()}
    for name, model in (models | {"teacher": task.teacher.frozen.module}).items():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient, name=name: reached.add(name))
    return reached


def rounds(folder: Path, config: DistillConfig) -> dict[str, Any]:
    """The whole distillation on made-up samples: what each update did, and what it changed."""
    task, rows = begun(config), []
    batches = MadeUp(config).batches(0)
    before, reached = digests(task), watched(task)
    for update in range(task.total):
        reached.clear()
        task.step(update, next(batches))
        after = digests(task)
        changed = sorted(name for name in after if after[name] != before[name])
        row = {"phase": task.cycle.phase(update).value, "changed": changed, "reached": sorted(reached)}
        rows.append(row | {"values": task.metrics()})
        before = after
    save(folder, task.total, task.roles, config)
    counted, planned = ({n: asdict(b) for n, b in found.items()} for found in (task.bytes(), task.planned_bytes()))
    task.destroy()
    return {"rows": rows, "bytes": counted, "planned": planned}


def whole(
    folder: Path,
    config: DistillConfig,
    stop: int = 0,
    resume: bool = False,
    asked: tuple[int, list[int]] | None = None,
) -> dict[str, Any]:
    """A run, as launch/distill.py does it, on made-up samples; with `stop` it breaks off before that update, with
    `asked` some ranks are asked to stop in an update."""
    task = begun(config)
    if asked:
        ask(task, *asked)
    reader: Batches = MadeUp(config)
    if stop:
        reader = StoppedAt(reader, stop)
    try:
        train(task, reader, config, ranks.WORLD, folder, resume, 1e12, about(config))
    except Stopped:
        return {"stopped": stop}
    except StoppedError as error:
        return {"said": str(error), "code": code_of(error)}
    finally:
        task.destroy()
    return {}


def asked(folder: Path, config: DistillConfig, asks: list[tuple[int, list[int]]]) -> dict[str, Any]:
    """A run that is asked to stop several times, and goes on; how each part of it ended."""
    return {"ends": [whole(folder, config, resume=True, asked=one) for one in (*asks, None)]}


def reload(folder: Path, config: DistillConfig, source: str) -> dict[str, Any]:
    """Load another run's newest checkpoint of all roles, and save it as it is held here."""
    task = begun(config)
    step = restore(task, folder.parent / source, True, ranks.WORLD, config.checkpoint.every, False)
    save(folder, step, task.roles, config)
    task.destroy()
    return {"step": step}


class Counter(TorchDispatchMode):
    """Operations by torch's own formulas. Its FlopCounterMode follows modules too, and breaks off where one is called
    without a gradient on what has one."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = op(*args, **(kwargs or {}))
        if formula := flop_registry.get(op.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=found)
        return found


def operations(folder: Path, config: DistillConfig) -> dict[str, Any]:
    """What a counter counts of each update of a whole run, and about which of the student's steps it was."""
    task, rows = begun(config), []
    batches = MadeUp(config).batches(0)
    for update in range(task.total):
        with Counter() as counter:
            task.step(update, next(batches))
        row = {"phase": task.cycle.phase(update).value, "k": task._interval(update)}
        rows.append(row | {"count": counter.total})
    task.destroy()
    return {"rows": rows}


if __name__ == "__main__":
    ranks.main({f.__name__: f for f in (rounds, whole, asked, reload, operations)}, small_distill_config)
