"""One rank of a simulated launch: reads some steps and writes down what it got. test_reader.py starts several."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audiox_trainer.models.encoders.build import build_text_encoder
from audiox_trainer.trainer.core.config import PretrainConfig
from audiox_trainer.trainer.core.rng import Purpose, sample_rng
from audiox_trainer.trainer.data.batches import Batch
from audiox_trainer.trainer.data.reader import Reader
from tests.helpers.small_config import small_config


def open_reader(config: PretrainConfig, rank: int = 0, ranks: int = 1) -> Reader:
    return Reader(config, build_text_encoder(config.model.text), rank, ranks)


def describe(batch: Batch, seed: int, step: int) -> dict[int, list[Any]]:
    """index -> everything that a sample is, and the first of the noise that belongs to it."""
    video, audio, text, length = batch.conditions.tensors()
    rows = {}
    for i, index in enumerate(batch.indices.tolist()):
        n = int(length[i])
        sums = [float(np.float64(x).sum()) for x in (batch.latents[i], video[i], audio[i], text[i, :n])]
        noise = sample_rng(seed, step, index, Purpose.NOISE).standard_normal()
        rows[index] = [batch.ids[i], batch.tasks[i], n, *sums, noise]
    return rows


def read(config: PretrainConfig, start: int, steps: int, rank: int = 0, ranks: int = 1) -> list[dict[int, list[Any]]]:
    batches = open_reader(config, rank, ranks).batches(start)
    return [describe(next(batches), config.training.seed, step) for step in range(start, start + steps)]


def main() -> None:
    """Arguments: scenes, file to write, first step, number of steps, overrides."""
    scenes, out, start, steps, *overrides = sys.argv[1:]
    torch.distributed.init_process_group("gloo")
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    rows = read(small_config(Path(scenes), *overrides), int(start), int(steps), rank, ranks)
    Path(f"{out}.{rank}").write_text(json.dumps(rows))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
