"""Scenarios of tests/distillation, which every rank of a launch runs one after the other."""

from collections.abc import Collection
from dataclasses import asdict, replace
from functools import partial, partialmethod
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from audiox_trainer.models.audiox import AudioX
from audiox_trainer.trainer.core.cli import exit_code_of
from audiox_trainer.trainer.core.distill_config import DistillConfig
from audiox_trainer.trainer.distillation.updates import Distillation
from audiox_trainer.trainer.engine import compilation
from audiox_trainer.trainer.resilience.stop_signal import StoppedError
from audiox_trainer.trainer.training.loop import BatchSource, train
from audiox_trainer.trainer.training.save_and_resume import restore
from audiox_trainer.trainer.training.scores import Scores
from tests.helpers import scenarios
from tests.helpers.random_weights import stirred
from tests.helpers.scenarios import MadeUp, Stopped, StoppedAt, about, ask, digest, save, with_scores
from tests.helpers.small_config import small_distill_config


def teacher(config: DistillConfig) -> AudioX:
    """Random weights with a nonzero output; in new models the last projection is zero."""
    torch.manual_seed(11)
    return stirred(config.model)


def begun(config: DistillConfig) -> Distillation:
    return Distillation(config, teacher(config), scenarios.WORLD)


def digests(task: Distillation) -> dict[str, str]:
    """All that each role owns on this rank, what it computes with and its gradients, and the teacher's weights."""
    found = {}
    for name, role in task.roles.items():
        for kind, shards in role.state().items():
            found[f"{name}/{kind}"] = digest(shards)
        found[f"{name}/updates"] = str(role.engine.updates())
        found[f"{name}/computed"] = digest(held(role.engine.module))
        found[f"{name}/gradients"] = digest([t for t in role.engine._gradients() if t is not None])
    return found | {"teacher/weights": digest(held(task.teacher.frozen.module))}


def held(model: nn.Module) -> list[torch.Tensor]:
    """The weights that a model computes with on this rank. Where ZeRO-3 shards them, these are each parameter's
    `ds_tensor`: the whole comes and goes."""
    return [getattr(p, "ds_tensor", p) for p in model.parameters()]


def watched(task: Distillation) -> set[str]:
    """A set that collects the roles whose weights receive a gradient."""
    reached: set[str] = set()
    models = {name: role.engine.module for name, role in task.roles.items()}
    for name, model in (models | {"teacher": task.teacher.frozen.module}).items():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient, name=name: reached.add(name))
    return reached


class PassRecorder:
    """The passes through every role's model, as `cost.passes` would list them, in the order of their forward passes."""

    def __init__(self, task: Distillation, micro_batch: int) -> None:
        self.micro_batch, self.passes = micro_batch, list[dict[str, Any]]()
        models = {name: role.engine.module for name, role in task.roles.items()}
        for name, model in (models | {"teacher": task.teacher.frozen.module}).items():
            model.register_forward_hook(partial(self._forward, name), with_kwargs=True)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_hook(partial(self._weights, name))

    def _forward(self, name: str, model: nn.Module, inputs: Any, options: dict[str, int], out: torch.Tensor) -> None:
        samples = len(inputs[0]) // self.micro_batch
        seen = {"role": name, "gradient": "NONE", "samples": samples, "blocks": options.get("n_blocks")}
        self.passes.append(seen)
        if out.requires_grad:
            out.register_hook(lambda gradient: seen.update(gradient="LATENTS"))

    def _weights(self, name: str, gradient: torch.Tensor) -> None:
        for seen in self.passes:
            if seen["role"] == name and seen["gradient"] != "NONE":
                seen["gradient"] = "WEIGHTS"

    def take(self) -> list[dict[str, Any]]:
        taken, self.passes = self.passes, []
        return taken


def rounds(folder: Path, config: DistillConfig, paired: Collection[int] = ()) -> dict[str, Any]:
    """The whole distillation on made-up samples, `paired` in some updates: what each did, and what it changed."""
    task, rows = begun(config), []
    batches = MadeUp(config, paired=paired).batches(0)
    before, reached = digests(task), watched(task)
    recorder = PassRecorder(task, config.training.micro_batch)
    for update in range(task.total):
        reached.clear()
        task.step(update, next(batches))
        after = digests(task)
        changed = sorted(name for name in after if after[name] != before[name])
        row = {"phase": task.cycle.phase(update).value, "changed": changed, "reached": sorted(reached)}
        row |= {"k": task.objectives.student_step(update), "passes": recorder.take()}
        parameters = list(task.teacher.frozen.module.parameters())
        row["frozen"] = not any(p.requires_grad or p.grad is not None for p in parameters)
        values = task.metrics()
        rows.append(row | {"values": values, "said": task.warnings(values)})
        before = after
    save(folder, task.total, task.roles, config)
    traces = {name: engine.traces for name, engine in (task.engines | {"teacher": task.teacher.frozen}).items()}
    discarded = {name: found.discarded for name, found in traces.items() if found}
    counted, planned = ({n: asdict(b) for n, b in found.items()} for found in (task.bytes(), task.planned_bytes()))
    task.destroy()
    return {"rows": rows, "bytes": counted, "planned": planned, "discarded": discarded}


def whole(
    folder: Path,
    config: DistillConfig,
    stop: int = 0,
    resume: bool = False,
    poison: Collection[int] = (),
    asked: tuple[int, list[int]] | None = None,
) -> dict[str, Any]:
    """A run, as launch/distill.py does it, on made-up samples; with `stop` it breaks off before that batch, with
    `asked` some ranks are asked to stop in an update. One sample of each batch in `poison` is NaN."""
    task = begun(config)
    if asked:
        ask(task, *asked)
    reader: BatchSource = MadeUp(config, dict.fromkeys(poison, 1))
    if stop:
        reader = StoppedAt(reader, stop)
    scores = Scores(config, scenarios.WORLD, folder) if config.scores.every else None
    try:
        train(task, reader, config, scenarios.WORLD, folder, resume, 1e12, about(config), scores=scores)
    except Stopped:
        return {"stopped": stop}
    except StoppedError as error:
        return {"said": str(error), "code": exit_code_of(error)}
    finally:
        task.destroy()
    return {}


def scored(folder: Path, config: DistillConfig) -> dict[str, Any]:
    """A run that judges the student's sounds."""
    return whole(folder, with_scores(folder, config))


def midway(folder: Path, config: DistillConfig, updates: int) -> dict[str, Any]:
    """The first updates of a run, and a checkpoint in the middle of a round."""
    task = begun(config)
    for update, batch in zip(range(updates), MadeUp(config).batches(0), strict=False):
        task.step(update, batch)
    save(folder, updates, task.roles, config)
    task.destroy()
    return {}


def collapsed(folder: Path, config: DistillConfig, size: float) -> dict[str, Any]:
    """The warnings about a student that answers every condition with one pattern, `size` times as large as the data's,
    and of a discriminator that knows it."""
    task, said = begun(config), []

    def answer(model: Any, inputs: tuple[Any, ...], v: torch.Tensor) -> torch.Tensor:
        z, t = inputs[:2]
        pattern = torch.sin(torch.arange(z[0].numel())).view(z.shape[1:])
        return 0 * v + (z - size * 2 * pattern) / t[:, None, None]

    def scores(model: Any, inputs: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        signs = torch.ones(len(out), *[1] * (out.ndim - 1))
        signs[len(out) // 2 :] = -1  # data stands before the samples
        return 0 * out + 2 * signs

    task.engines["student"].module.register_forward_hook(answer)
    task.engines["discriminator"].module.register_forward_hook(scores)
    for update, batch in zip(range(task.total), MadeUp(config).batches(0), strict=False):
        task.step(update, replace(batch, given_mask=torch.zeros_like(batch.given_mask)))
        said.append({"phase": task.kind(update), "said": task.warnings(task.metrics())})
    task.destroy()
    return {"rows": said}


def asked(folder: Path, config: DistillConfig, asks: list[tuple[int, list[int]]]) -> dict[str, Any]:
    """A run that is asked to stop several times, and resumes; returns how each part ended."""
    return {"ends": [whole(folder, config, resume=True, asked=one) for one in (*asks, None)]}


def reload(folder: Path, config: DistillConfig, source: str) -> dict[str, Any]:
    """Loads another run's newest checkpoint of all roles, and saves it in this layout."""
    task = begun(config)
    step = restore(task, folder.parent / source, True, scenarios.WORLD, config.checkpoint.every, False).step
    save(folder, step, task.roles, config)
    task.destroy()
    return {"step": step}


def compiled(folder: Path, config: DistillConfig) -> dict[str, Any]:
    """The versions of a block's code after each update, in batches whose texts have two lengths. The code is made by
    dynamo alone, since its versions do not depend on what compiles them."""
    with mock.patch.object(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager")):
        task, versions = begun(config), []
        for update, batch in zip(range(task.total), MadeUp(config).batches(0), strict=False):
            text = torch.nn.functional.pad(batch.conditions.text, (0, 0, 0, 8 * (update % 2)))
            task.step(update, replace(batch, conditions=replace(batch.conditions, text=text)))
            versions.append(compilation.compiled_versions())
    task.destroy()
    said = compilation.compilation_warnings()
    compilation.RECOMPILE_LIMIT = versions[-1]
    return {"versions": versions, "said": said, "said at the limit": compilation.compilation_warnings()}


class FlopCounter(TorchDispatchMode):
    """Operations by the formulas of torch's FlopCounterMode. That mode itself follows modules too, and fails if one is
    called without a gradient on inputs that have one. Like it, this sees only torch's own operations (not Triton's
    kernels, flash-attn or compiled code), and it counts what checkpointing recomputes."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = op(*args, **(kwargs or {}))
        if formula := flop_registry.get(op.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=found)
        return found


def operations(folder: Path, config: DistillConfig) -> dict[str, Any]:
    """The operations and passes of each update of a whole run, and which of the student's steps it was about."""
    task, rows = begun(config), []
    recorder = PassRecorder(task, config.training.micro_batch)
    batches = MadeUp(config).batches(0)
    for update in range(task.total):
        with FlopCounter() as counter:
            task.step(update, next(batches))
        row = {"phase": task.cycle.phase(update).value, "k": task.objectives.student_step(update)}
        rows.append(row | {"count": counter.total, "passes": recorder.take()})
    task.destroy()
    return {"rows": rows}


if __name__ == "__main__":
    scenarios.main(
        {f.__name__: f for f in (rounds, whole, scored, midway, collapsed, asked, reload, compiled, operations)},
        small_distill_config,
    )
