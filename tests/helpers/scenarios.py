"""The parts that training_scenarios.py and distillation_scenarios.py share.

A scenario is a function of a folder and keyword arguments that all ranks run. Its result on each rank is written to
`FOLDER/rank_N.json`.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import xxhash

from audiox_trainer.models import strict
from audiox_trainer.trainer.checkpoint.load import TrainedModel
from audiox_trainer.trainer.checkpoint.save import Saver
from audiox_trainer.trainer.core.config import BaseConfig
from audiox_trainer.trainer.data.batches import Batch, Conditions
from audiox_trainer.trainer.engine.process_group import World, init_process_group
from audiox_trainer.trainer.training.health import StepResult
from audiox_trainer.trainer.training.loop import BatchSource, Trainer
from tests.helpers.training_scores import write_scores

WORLD: World
C = TypeVar("C", bound=BaseConfig)


class Stopped(Exception):
    """Raised to end a run in the middle."""


def sample(config: BaseConfig, step: int, index: int) -> tuple[np.ndarray, ...]:
    """Synthetic latents, video, audio, text and its length, from the step and the index only."""
    model = config.model
    rng = np.random.default_rng([step, index])
    length = int(rng.integers(1, 9))
    text = np.zeros((8, model.text.dim), np.float32)
    text[:length] = rng.standard_normal((length, model.text.dim))
    pattern = np.sin(np.arange(model.codec.frames * model.codec.latent_channels)).reshape(model.codec.frames, -1)
    latents = 2 * pattern + 0.3 * rng.standard_normal(pattern.shape)
    video = rng.standard_normal((model.video_rows, model.video.dim)) * rng.integers(2)
    audio = latents * rng.integers(2)
    audio[int(rng.integers(1, len(audio))) :] = 0
    return latents, video, audio, text, np.array(length)


def made_up(config: BaseConfig, step: int, indices: list[int], paired: bool = False) -> Batch:
    """A batch without shards. If `paired`, with noise whose endpoints its latents are."""
    rows = zip(*(sample(config, step, index) for index in indices), strict=True)
    latents, video, audio, text, length = (torch.from_numpy(np.stack(row)) for row in rows)
    conditions = Conditions(video.float(), audio.float(), text.float(), length)
    given = (audio != 0).any(2).float()
    ids = tuple(f"sample-{step}-{index}" for index in indices)
    noise = None
    if paired:
        rngs = [np.random.default_rng([step, index, 1]) for index in indices]
        noise = torch.from_numpy(np.stack([rng.standard_normal(latents.shape[1:], np.float32) for rng in rngs]))
    return Batch(latents.float(), conditions, given, torch.tensor(indices), ("T2A",) * len(indices), ids, noise)


class MadeUp:
    """Batches of made-up samples; `poison` gives steps at which one sample of the global batch is not finite, `paired`
    steps whose samples are pairs."""

    def __init__(self, config: BaseConfig, poison: dict[int, int] | None = None, paired: Collection[int] = ()) -> None:
        self.config, self.poison, self.paired = config, poison or {}, paired

    def batches(self, start: int) -> Iterator[Batch]:
        step = start
        while True:
            share = self.config.training.global_batch // WORLD.ranks
            indices = [i * WORLD.ranks + WORLD.rank for i in range(share)]
            batch = made_up(self.config, step, indices, step in self.paired)
            if self.poison.get(step) in indices:
                batch.latents[indices.index(self.poison[step])] = torch.nan
            yield batch
            step += 1


class StoppedAt:
    """The batches of another reader up to a step, then `Stopped`."""

    def __init__(self, reader: BatchSource, step: int) -> None:
        self.reader, self.step = reader, step

    def batches(self, start: int) -> Iterator[Batch]:
        for step, batch in enumerate(self.reader.batches(start), start=start):
            if step == self.step:
                raise Stopped
            yield batch


def made_up_curve(task: Any, config: BaseConfig) -> list[list[float]]:
    """Pretrains on made-up samples: the mean loss of all ranks and the gradient norm of every step."""
    curve, batches = [], MadeUp(config).batches(0)
    for step in range(config.training.steps):
        task.step(step, next(batches))
        values = task.metrics()
        curve.append([values["loss"], values["grad_norm"]])
    return curve


class Recorded:
    """The batches of another reader, whose samples are also written to a file."""

    def __init__(self, reader: BatchSource, file: Path) -> None:
        self.reader, self.file = reader, file

    def batches(self, start: int) -> Iterator[Batch]:
        with self.file.open("w") as file:
            for step, batch in enumerate(self.reader.batches(start), start=start):
                file.write(json.dumps({"step": step, "indices": batch.indices.tolist(), "ids": batch.ids}) + "\n")
                yield batch


def digest(shards: list[torch.Tensor]) -> str:
    state = xxhash.xxh3_128()
    for shard in shards:
        state.update(shard.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return str(state.hexdigest())


def about(config: BaseConfig) -> dict[str, Any]:
    return {"config": strict.to_dict(config)}


def with_scores(folder: Path, config: C) -> C:
    """The configuration with scores, whose files lie next to the run's folder."""
    place = folder.with_name(f"{folder.name}, scores")
    settings = write_scores(place / str(WORLD.rank))  # each rank its own: nobody has to wait
    return replace(config, scores=settings)


def save(folder: Path, step: int, roles: dict[str, TrainedModel], config: BaseConfig) -> None:
    """Saves a checkpoint while training waits."""
    with Saver(folder, roles, about(config)) as saver:
        saver.begin(step)
        saver.finish()


def ask(task: Trainer, at: int, ranks: list[int]) -> None:
    """Sends these ranks a batch system's signal in the middle of this step."""
    step = task.step

    def stepped(number: int, batch: Batch) -> StepResult:
        if number == at and WORLD.rank in ranks:
            os.kill(os.getpid(), signal.SIGUSR2)
        return step(number, batch)

    task.step = stepped


def main(scenarios: dict[str, Callable[..., dict[str, Any]]], configure: Callable[..., Any]) -> None:
    """Argument: a JSON file with a list of {scenario, folder, scenes, overrides, arguments}."""
    global WORLD
    WORLD = init_process_group()
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
