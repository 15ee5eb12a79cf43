"""Scenarios of tests/training, which every rank of a launch runs one after the other; they leave checkpoints and
results."""

import os
import resource
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.comm.comm import comms_logger
from torch.distributed import distributed_c10d as c10d
from torch.utils._python_dispatch import TorchDispatchMode

from audiox_trainer.models.encoders.build import build_text_encoder
from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.checkpoint import save as saving
from audiox_trainer.trainer.core.cli import exit_code_of
from audiox_trainer.trainer.core.config import PretrainConfig, TimeoutsConfig
from audiox_trainer.trainer.cost import role_bytes
from audiox_trainer.trainer.data.batches import Batch
from audiox_trainer.trainer.data.reader import Reader
from audiox_trainer.trainer.resilience.stop_signal import StoppedError
from audiox_trainer.trainer.training.health import StepResult
from audiox_trainer.trainer.training.loop import BatchSource, train
from audiox_trainer.trainer.training.pretrain import Pretraining
from audiox_trainer.trainer.training.save_and_resume import restore
from audiox_trainer.trainer.training.scores import Scores
from audiox_trainer.trainer.training.validation import read_held_out
from tests.helpers import scenarios
from tests.helpers.scenarios import (
    MadeUp,
    Recorded,
    Stopped,
    StoppedAt,
    about,
    ask,
    digest,
    made_up_curve,
    save,
    with_scores,
)
from tests.helpers.small_config import small_config


def digests(task: Pretraining) -> dict[str, str]:
    """Digests of this rank's weights, moments and moving average."""
    found = {kind: digest(shards) for kind, shards in task.roles["model"].state().items()}
    return found | {"updates": str(task.engine.updates())}


def losses(folder: Path, config: PretrainConfig) -> dict[str, Any]:
    """Trains on synthetic samples and returns the mean loss of all ranks and the gradient norm of every step."""
    task = Pretraining(config, scenarios.WORLD)
    curve = made_up_curve(task, config)
    save(folder, config.training.steps, task.roles, config)
    task.engine.destroy()
    return {"curve": curve}


def whole(
    folder: Path,
    config: PretrainConfig,
    stop: int = 0,
    resume: bool = False,
    poison: Sequence[int] = (),
    from_step: int | None = None,
    record: bool = False,
    asked: tuple[int, list[int]] | None = None,
) -> dict[str, Any]:
    """A run from shards, as launch/pretrain.py does it; with `stop` it breaks off before that batch, with `asked` some
    ranks are asked to stop in a step. With `poison` samples are synthetic, and one in each of these batches is NaN."""
    task = Pretraining(config, scenarios.WORLD)
    if asked:
        ask(task, *asked)
    world = scenarios.WORLD
    encode_text = build_text_encoder(config.model.text)
    reader: BatchSource = Reader(config, encode_text, world.rank, world.ranks)
    validation = task.validation(read_held_out(config, encode_text, world))
    if poison:
        reader = MadeUp(config, dict.fromkeys(poison, 1))
    if record:
        last = stop or config.training.steps  # the loop fetches a batch more than it takes
        reader = Recorded(StoppedAt(reader, last), folder / f"samples_{world.ranks}_{world.rank}.jsonl")
    if stop:
        reader = StoppedAt(reader, stop)
    scores = Scores(config, world, folder) if config.scores.every else None
    arguments = folder, resume, 1e12, about(config), None, from_step, validation, scores
    try:
        train(task, reader, config, scenarios.WORLD, *arguments)
    except Stopped:
        return {"stopped": stop}
    except StoppedError as error:
        return {"said": str(error), "code": exit_code_of(error)}
    except FloatingPointError as error:
        left = sorted(path.name for path in (folder / load.FOLDER).iterdir())
        return {"error": str(error), "code": exit_code_of(error), "left": left}
    finally:
        task.engine.destroy()
    return {}


def scored(folder: Path, config: PretrainConfig) -> dict[str, Any]:
    """A run that judges its sounds."""
    return whole(folder, with_scores(folder, config))


def asked(folder: Path, config: PretrainConfig, asks: list[tuple[int, list[int]]]) -> dict[str, Any]:
    """A run that is asked to stop several times, and resumes; returns how each part ended."""
    return {"ends": [whole(folder, config, resume=True, asked=one) for one in (*asks, None)]}


def bad_rate(folder: Path, config: PretrainConfig, lr: float) -> dict[str, Any]:
    """Some steps, a resume at a rate at which nothing stays finite, and a return at the former rate."""
    high = replace(config, optimizer=replace(config.optimizer, lr=lr))
    # A run that breaks off may lose the save that it makes in the background.
    waits = replace(config, checkpoint=replace(config.checkpoint, async_save=False))
    begun, diverged = whole(folder, waits, stop=5), whole(folder, high, resume=True)
    return {"ends": [begun, diverged, whole(folder, config, resume=True, from_step=4)]}


def async_save(folder: Path, config: PretrainConfig, fails: bool = False) -> dict[str, Any]:
    """A run that saves asynchronously. Rank 1 writes the first checkpoint not before its seventh step, or cannot;
    what stood there at the beginning of each step."""
    task, seen, gate, write = Pretraining(config, scenarios.WORLD), [], threading.Event(), saving.save_file
    step = task.step

    def stepped(number: int, batch: Batch) -> StepResult:
        seen.append(sorted(p.name for p in (folder / load.FOLDER).glob("*")))
        if number == 6:
            gate.set()
        return step(number, batch)

    def written(*arguments: Any) -> None:
        if scenarios.WORLD.rank == 1 and not gate.wait(600):
            raise TimeoutError("training does not go on")
        if scenarios.WORLD.rank == 1 and fails:
            raise OSError("no space left")
        write(*arguments)

    task.step, saving.save_file = stepped, written
    reader = Reader(config, build_text_encoder(config.model.text), scenarios.WORLD.rank, scenarios.WORLD.ranks)
    try:
        train(task, reader, config, scenarios.WORLD, folder, False, 1e12, about(config))
    except OSError as error:
        torch.distributed.barrier()  # rank 0 removes it
        return {"seen": seen, "error": str(error), "left": [p.name for p in (folder / load.FOLDER).iterdir()]}
    finally:
        saving.save_file = write
        task.engine.destroy()
    return {"seen": seen}


def reload(folder: Path, config: PretrainConfig, source: str, steps: int = 0) -> dict[str, Any]:
    """Loads another run's newest checkpoint, trains some synthetic steps, and saves."""
    task = Pretraining(config, scenarios.WORLD)
    origin = folder.parent / source
    start = restore(task, origin, True, scenarios.WORLD, config.checkpoint.every, False).step
    batches, curve = MadeUp(config).batches(start), []
    for step in range(start, start + steps):
        task.step(step, next(batches))
        curve.append(task.metrics()["loss"])
    save(folder, start + steps, task.roles, config)
    task.engine.destroy()
    return {"start": start, "curve": curve}


def poisoned(folder: Path, config: PretrainConfig, at: int, index: int) -> dict[str, Any]:
    """Six steps, one of them with a NaN sample: digests after every step, and whether it was applied."""
    task, rows = Pretraining(config, scenarios.WORLD), []
    batches = MadeUp(config, {at: index}).batches(0)
    rows.append([None, digests(task)])
    for step in range(6):
        result = task.step(step, next(batches))
        rows.append([result.applied, digests(task) | {"skipped": str(result.values["skipped"])}])
    metrics = task.metrics()
    task.engine.destroy()
    return {"rows": rows, "grad_norm": metrics["grad_norm"]}


def save_three_times(
    folder: Path, config: PretrainConfig, before: Callable[[], None], after: Callable[[], None]
) -> list[Any]:
    """Saves after each of three steps, with an action before and one after the second save."""
    task = Pretraining(config, scenarios.WORLD)
    batches, found = MadeUp(config).batches(0), []
    for step in range(3):
        task.step(step, next(batches))
        if step == 1:
            before()
        torch.distributed.barrier()
        try:
            save(folder, step + 1, task.roles, config)
            outcome = "saved"
        except OSError as error:
            outcome = str(error)
        torch.distributed.barrier()
        if step == 1:
            after()
        found.append([outcome, sorted(p.name for p in (folder / load.FOLDER).iterdir())])
        torch.distributed.barrier()
    task.engine.destroy()
    return found


def file_too_large(folder: Path, config: PretrainConfig) -> dict[str, Any]:
    """Rank 1 may not write large files, once."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    small = (20_000 if scenarios.WORLD.rank == 1 else limits[0], limits[1])

    def limit(to: tuple[int, int]) -> Callable[[], None]:
        return partial(resource.setrlimit, resource.RLIMIT_FSIZE, to)

    return {"found": save_three_times(folder, config, limit(small), limit(limits))}


def full_disk(folder: Path, config: PretrainConfig) -> dict[str, Any]:
    """A small file system that is full, once."""
    disk = folder / load.FOLDER
    disk.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    mounted = [scenarios.WORLD.rank == 0 and subprocess.run(mount, capture_output=True).returncode == 0]
    torch.distributed.broadcast_object_list(mounted, src=0)
    if not mounted[0]:
        return {"found": None}
    filler = disk / "filler"

    def fill() -> None:
        if scenarios.WORLD.rank == 0:
            free = os.statvfs(disk)
            filler.write_bytes(bytes(free.f_bavail * free.f_bsize - 100_000))

    def free() -> None:
        if scenarios.WORLD.rank == 0:
            filler.unlink()
        torch.distributed.barrier()

    try:
        return {"found": save_three_times(folder, config, fill, free)}
    finally:
        if scenarios.WORLD.rank == 0:
            subprocess.run(["umount", str(disk)], check=True)


def preview(folder: Path, config: PretrainConfig) -> dict[str, Any]:
    """A preview of the EMA weights in the middle of training changes no weight."""
    logging = replace(config.logging, preview_prompts=("a bell rings", "a dog barks"))
    task = Pretraining(replace(config, logging=logging), scenarios.WORLD)
    batches = MadeUp(config).batches(0)
    for step in range(3):
        task.step(step, next(batches))
    before = digests(task)
    _, waves = task.preview()
    return {"same": digests(task) == before, "waves": waves.flatten().tolist(), "shape": list(waves.shape)}


class Waits(TorchDispatchMode):
    """Records operations whose result the host needs, for which it would wait for its device."""

    NAMES = frozenset(("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"))

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[bool, list[str]] = {False: [], True: []}  # by whether the optimizer steps
        self.stepping = False

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.overloadpacket.__name__ in self.NAMES:
            self.found[self.stepping].append(str(op))
        return op(*args, **(kwargs or {}))


def waits(folder: Path, config: PretrainConfig) -> dict[str, Any]:
    """The operations of the fourth step that a host would wait for, in forward and backward, and in the optimizer's
    step."""
    task, batches, mode = Pretraining(config, scenarios.WORLD), MadeUp(config).batches(0), Waits()
    step = task.engine.engine.step

    def stepped(*arguments: Any) -> None:
        mode.stepping = True
        step(*arguments)
        mode.stepping = False

    for number in range(3):
        task.step(number, next(batches))
    task.engine.engine.step = stepped
    with mode:
        task.step(3, next(batches))
    task.engine.destroy()
    return {"before": mode.found[False], "stepping": mode.found[True]}


def counted(folder: Path, config: PretrainConfig) -> dict[str, Any]:
    """Counts of a rank's second step: bytes of its tensors, of gradients that stay after it, of DeepSpeed's buffers and
    of its collective operations."""
    task, batches = Pretraining(config, scenarios.WORLD), MadeUp(config).batches(0)
    first, buffers = next(task.model.parameters()), [0]

    def look(gradient: torch.Tensor) -> None:  # the buffers are there in the backward pass
        buckets = getattr(task.engine.optimizer, "ipg_buckets", {}).values()
        found = (b.buffer if isinstance(b.buffer, list) else [b.buffer] for b in buckets)
        buffers.append(sum(buffer.nbytes for several in found for buffer in several))

    first.register_hook(look)
    deepspeed.comm.configure(enabled=True, prof_all=True)
    for step in range(2):
        comms_logger.reset_data()
        task.step(step, next(batches))
    logged = {name: sum(n * f[0] for n, f in sizes.items()) for name, sizes in comms_logger.comms_dict.items()}
    deepspeed.comm.configure(enabled=False)
    held = asdict(task.engine.bytes(task.ema.values))
    staying = role_bytes.storage_bytes(task.engine._gradients())
    task.engine.destroy()
    return {"held": held, "staying": staying, "buffers": max(buffers), "logged": logged}


def process_groups(folder: Path, config: PretrainConfig) -> dict[str, Any]:
    """The timeout in seconds of every process group, DeepSpeed's own included, and the bounds of the phases."""
    task = Pretraining(config, scenarios.WORLD)
    seconds = [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in c10d._world.pg_map]
    task.engine.destroy()
    return {"seconds": seconds, "phases": list(asdict(TimeoutsConfig()).values())}


SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {
    f.__name__: f
    for f in (
        losses,
        whole,
        scored,
        asked,
        bad_rate,
        async_save,
        reload,
        poisoned,
        file_too_large,
        full_disk,
        preview,
        waits,
        counted,
        process_groups,
    )
}


if __name__ == "__main__":
    scenarios.main(SCENARIOS, small_config)
