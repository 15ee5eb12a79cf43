"""One rank of a launch of tests/training: runs scenarios one after the other and leaves checkpoints and numbers.

A scenario is a function of a folder and keyword arguments; all ranks run it. What it returns on each rank is written to
`FOLDER/rank_N.json`.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import xxhash
from deepspeed.comm.comm import comms_logger
from torch.utils._python_dispatch import TorchDispatchMode

from audiox_turbo.models import strict
from audiox_turbo.models.encoders.build import build_text_encoder
from audiox_turbo.trainer import checkpoint, saving, zero
from audiox_turbo.trainer.checkpoint import Role
from audiox_turbo.trainer.command import code_of
from audiox_turbo.trainer.config import BaseConfig, RunConfig
from audiox_turbo.trainer.data.reader import Reader
from audiox_turbo.trainer.data.tasks import Batch, Conditions
from audiox_turbo.trainer.loop import Batches, Step, Task, restore, train
from audiox_turbo.trainer.pretrain import Pretraining
from audiox_turbo.trainer.saving import Saver
from audiox_turbo.trainer.stopping import StoppedError
from tests.small import small_config

WORLD: zero.World


class Stopped(Exception):
    """A process that ends in the middle of a run."""


def sample(config: RunConfig, step: int, place: int) -> tuple[np.ndarray, ...]:
    """Latents, video, audio, text and its length, made up from the step and the place alone."""
    model = config.model
    rng = np.random.default_rng([step, place])
    length = int(rng.integers(1, 9))
    text = np.zeros((8, model.text.dim), np.float32)
    text[:length] = rng.standard_normal((length, model.text.dim))
    pattern = np.sin(np.arange(model.codec.frames * model.codec.channels)).reshape(model.codec.frames, -1)
    latents = 2 * pattern + 0.3 * rng.standard_normal(pattern.shape)
    video = rng.standard_normal((model.video.steps, model.video.dim)) * rng.integers(2)
    return latents, video, latents * rng.integers(2), text, np.array(length)


def made_up(config: RunConfig, step: int, places: list[int]) -> Batch:
    """A batch that needs no shards."""
    rows = zip(*(sample(config, step, place) for place in places), strict=True)
    latents, video, audio, text, length = (torch.from_numpy(np.stack(row)) for row in rows)
    conditions = Conditions(video.float(), audio.float(), text.float(), length)
    given = (audio != 0).any(2).float()
    ids = tuple(f"sample-{step}-{place}" for place in places)
    return Batch(latents.float(), conditions, given, torch.tensor(places), ("T2A",) * len(places), ids)


class MadeUp:
    """Batches of made-up samples; `poison` gives steps at which one place of the global batch is not finite."""

    def __init__(self, config: RunConfig, poison: dict[int, int] | None = None) -> None:
        self.config, self.poison = config, poison or {}

    def batches(self, start: int) -> Iterator[Batch]:
        step = start
        while True:
            share = self.config.training.global_batch // WORLD.ranks
            places = [i * WORLD.ranks + WORLD.rank for i in range(share)]
            batch = made_up(self.config, step, places)
            if self.poison.get(step) in places:
                batch.latents[places.index(self.poison[step])] = torch.nan
            yield batch
            step += 1


class StoppedAt:
    """The batches of another reader up to a step."""

    def __init__(self, reader: Batches, step: int) -> None:
        self.reader, self.step = reader, step

    def batches(self, start: int) -> Iterator[Batch]:
        for step, batch in enumerate(self.reader.batches(start), start=start):
            if step == self.step:
                raise Stopped
            yield batch


class Recorded:
    """The batches of another reader, which samples they hold written to a file."""

    def __init__(self, reader: Batches, file: Path) -> None:
        self.reader, self.file = reader, file

    def batches(self, start: int) -> Iterator[Batch]:
        with self.file.open("w") as file:
            for step, batch in enumerate(self.reader.batches(start), start=start):
                file.write(json.dumps({"step": step, "places": batch.places.tolist(), "ids": batch.ids}) + "\n")
                yield batch


def digest(shards: list[torch.Tensor]) -> str:
    state = xxhash.xxh3_128()
    for shard in shards:
        state.update(shard.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return str(state.hexdigest())


def digests(task: Pretraining) -> dict[str, str]:
    """Weights, moments and moving average that this rank owns, and what the model computes with."""
    found = {kind: digest(shards) for kind, shards in task.roles["model"].state().items()}
    return found | {"updates": str(task.engine.updates())}


def about(config: BaseConfig) -> dict[str, Any]:
    return {"config": strict.to_dict(config)}


def save(folder: Path, step: int, roles: dict[str, Role], config: BaseConfig) -> None:
    """A checkpoint that training waits for."""
    with Saver(folder, roles, about(config)) as saver:
        saver.begin(step)
        saver.finish()


def losses(folder: Path, config: RunConfig) -> dict[str, Any]:
    """Train on made-up samples; the mean loss of all ranks and the gradient's norm at every step."""
    task, curve = Pretraining(config, WORLD), []
    batches = MadeUp(config).batches(0)
    for step in range(config.training.steps):
        task.step(step, next(batches))
        values = task.metrics()
        curve.append([values["loss"], values["grad_norm"]])
    save(folder, config.training.steps, task.roles, config)
    task.engine.destroy()
    return {"curve": curve}


def ask(task: Task, at: int, ranks: list[int]) -> None:
    """These ranks get a batch system's signal in the middle of this step."""
    step = task.step

    def stepped(number: int, batch: Batch) -> Step:
        if number == at and WORLD.rank in ranks:
            os.kill(os.getpid(), signal.SIGUSR2)
        return step(number, batch)

    task.step = stepped


def whole(
    folder: Path,
    config: RunConfig,
    stop: int = 0,
    resume: bool = False,
    poison: bool = False,
    record: bool = False,
    asked: tuple[int, list[int]] | None = None,
) -> dict[str, Any]:
    """A run from shards, as launch/pretrain.py does it; with `stop` it breaks off before that step, with `asked` some
    ranks are asked to stop in a step."""
    task = Pretraining(config, WORLD)
    if asked:
        ask(task, *asked)
    reader: Batches = Reader(config, build_text_encoder(config.model.text), WORLD.rank, WORLD.ranks)
    if poison:
        reader = MadeUp(config, {step: 1 for step in range(3, 99)})
    if record:
        last = stop or config.training.steps  # the loop fetches a batch more than it takes
        reader = Recorded(StoppedAt(reader, last), folder / f"samples_{WORLD.ranks}_{WORLD.rank}.jsonl")
    if stop:
        reader = StoppedAt(reader, stop)
    try:
        train(task, reader, config, WORLD, folder, resume, 1e12, about(config))
    except Stopped:
        return {"stopped": stop}
    except StoppedError as error:
        return {"said": str(error), "code": code_of(error)}
    except FloatingPointError as error:
        return {"error": str(error)}
    finally:
        task.engine.destroy()
    return {}


def asked(folder: Path, config: RunConfig, asks: list[tuple[int, list[int]]]) -> dict[str, Any]:
    """A run that is asked to stop several times, and goes on; how each part of it ended."""
    return {"ends": [whole(folder, config, resume=True, asked=one) for one in (*asks, None)]}


def beside(folder: Path, config: RunConfig, fails: bool = False) -> dict[str, Any]:
    """A run that saves beside its steps. Rank 1 writes the first checkpoint not before its seventh step, or cannot;
    what stood there at the beginning of each step."""
    task, seen, gate, write = Pretraining(config, WORLD), [], threading.Event(), saving.save_file
    step = task.step

    def stepped(number: int, batch: Batch) -> Step:
        seen.append(sorted(p.name for p in (folder / checkpoint.FOLDER).glob("*")))
        if number == 6:
            gate.set()
        return step(number, batch)

    def written(*arguments: Any) -> None:
        if WORLD.rank == 1 and not gate.wait(60):
            raise TimeoutError("training does not go on")
        if WORLD.rank == 1 and fails:
            raise OSError("no space left")
        write(*arguments)

    task.step, saving.save_file = stepped, written
    reader = Reader(config, build_text_encoder(config.model.text), WORLD.rank, WORLD.ranks)
    try:
        train(task, reader, config, WORLD, folder, False, 1e12, about(config))
    except OSError as error:
        torch.distributed.barrier()  # rank 0 removes it
        return {"seen": seen, "error": str(error), "left": [p.name for p in (folder / checkpoint.FOLDER).iterdir()]}
    finally:
        saving.save_file = write
        task.engine.destroy()
    return {"seen": seen}


def reload(folder: Path, config: RunConfig, source: str, steps: int = 0) -> dict[str, Any]:
    """Load another run's newest checkpoint, go on for some made-up steps, and save under the step reached."""
    task = Pretraining(config, WORLD)
    origin = folder.parent / source
    start = restore(task, origin, True, WORLD, config.checkpoint.every)
    batches, curve = MadeUp(config).batches(start), []
    for step in range(start, start + steps):
        task.step(step, next(batches))
        curve.append(task.metrics()["loss"])
    save(folder, start + steps, task.roles, config)
    task.engine.destroy()
    return {"start": start, "curve": curve}


def poisoned(folder: Path, config: RunConfig, at: int, place: int) -> dict[str, Any]:
    """Six steps, in one of which one sample is NaN: digests after every step, and whether it was applied."""
    task, rows = Pretraining(config, WORLD), []
    batches = MadeUp(config, {at: place}).batches(0)
    rows.append([None, digests(task)])
    for step in range(6):
        result = task.step(step, next(batches))
        rows.append([result.applied, digests(task) | {"skipped": str(result.values["skipped"])}])
    metrics = task.metrics()
    task.engine.destroy()
    return {"rows": rows, "grad_norm": metrics["grad_norm"]}


def save_three_times(
    folder: Path, config: RunConfig, before: Callable[[], None], after: Callable[[], None]
) -> list[Any]:
    """Save after each of three steps; before the second one something happens, after it something else."""
    task = Pretraining(config, WORLD)
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
        found.append([outcome, sorted(p.name for p in (folder / checkpoint.FOLDER).iterdir())])
        torch.distributed.barrier()
    task.engine.destroy()
    return found


def file_too_large(folder: Path, config: RunConfig) -> dict[str, Any]:
    """Rank 1 may not write what it has to, once."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    small = (20_000 if WORLD.rank == 1 else limits[0], limits[1])

    def limit(to: tuple[int, int]) -> Callable[[], None]:
        return partial(resource.setrlimit, resource.RLIMIT_FSIZE, to)

    return {"found": save_three_times(folder, config, limit(small), limit(limits))}


def full_disk(folder: Path, config: RunConfig) -> dict[str, Any]:
    """A small file system of its own that is full, once."""
    disk = folder / checkpoint.FOLDER
    disk.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    mounted = [WORLD.rank == 0 and subprocess.run(mount, capture_output=True).returncode == 0]
    torch.distributed.broadcast_object_list(mounted, src=0)
    if not mounted[0]:
        return {"found": None}
    filler = disk / "filler"

    def fill() -> None:
        if WORLD.rank == 0:
            free = os.statvfs(disk)
            filler.write_bytes(bytes(free.f_bavail * free.f_bsize - 100_000))

    def free() -> None:
        if WORLD.rank == 0:
            filler.unlink()
        torch.distributed.barrier()

    try:
        return {"found": save_three_times(folder, config, fill, free)}
    finally:
        if WORLD.rank == 0:
            subprocess.run(["umount", str(disk)], check=True)


def preview(folder: Path, config: RunConfig) -> dict[str, Any]:
    """Sound of the EMA weights in the middle of training changes no weight."""
    task = Pretraining(replace(config, logging=replace(config.logging, prompts=("a bell rings", "a dog barks"))), WORLD)
    batches = MadeUp(config).batches(0)
    for step in range(3):
        task.step(step, next(batches))
    before = digests(task)
    _, waves, latents = task.preview()
    return {"same": digests(task) == before, "latents": latents.flatten().tolist(), "shape": list(waves.shape)}


class Waits(TorchDispatchMode):
    """The operations for which a host would wait for its device: those whose result it has to know to go on."""

    NAMES = frozenset(("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"))

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[bool, list[str]] = {False: [], True: []}  # by whether the optimizer steps
        self.stepping = False

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.overloadpacket.__name__ in self.NAMES:
            self.found[self.stepping].append(str(op))
        return op(*args, **(kwargs or {}))


def waits(folder: Path, config: RunConfig) -> dict[str, Any]:
    """Of the fourth step: what a host would wait for in forward and backward, and in the optimizer's step."""
    task, batches, mode = Pretraining(config, WORLD), MadeUp(config).batches(0), Waits()
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


def counted(folder: Path, config: RunConfig) -> dict[str, Any]:
    """Of a rank's second step: bytes of its tensors and of DeepSpeed's buffers, and of its collective operations."""
    task, batches = Pretraining(config, WORLD), MadeUp(config).batches(0)
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
    task.engine.destroy()
    return {"held": held, "buffers": max(buffers), "logged": logged}


SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {
    f.__name__: f
    for f in (
        losses,
        whole,
        asked,
        beside,
        reload,
        poisoned,
        file_too_large,
        full_disk,
        preview,
        waits,
        counted,
    )
}


def main(scenarios: dict[str, Callable[..., dict[str, Any]]], configure: Callable[..., Any]) -> None:
    """Argument: a JSON file with a list of {scenario, folder, scenes, overrides, arguments}."""
    global WORLD
    WORLD = zero.start()
    torch.set_num_threads(1)
    for item in json.loads(Path(sys.argv[1]).read_text()):
        folder = Path(item["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        config = configure(Path(item["scenes"]), *item["overrides"])
        try:
            result = scenarios[item["scenario"]](folder, config, **item["arguments"])
        except Exception:
            (folder / f"rank_{WORLD.rank}.json").write_text(json.dumps({"failed": traceback.format_exc()}))
            raise  # the ranks may be out of step now
        (folder / f"rank_{WORLD.rank}.json").write_text(json.dumps(result))
        torch.distributed.barrier()


if __name__ == "__main__":
    main(SCENARIOS, small_config)
