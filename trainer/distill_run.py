"""A distillation from its configuration to its end."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ..models import strict
from ..models.audiox import WEIGHTS, AudioX
from ..models.encoders.build import build_text_encoder
from . import checkpoint, run, zero
from .config import check_ranks
from .data.pairs import PairReader, read_facts
from .data.reader import Reader, check_streams
from .data.tasks import Batch
from .distill import Distillation
from .distill_config import DistillConfig
from .generator import load_weights
from .hardware import peak_flops
from .loop import train


def distill(config: DistillConfig, teacher: Path, output: Path, resume: bool) -> None:
    """Train to `training.steps` of the student in rounds, writing into `output`.

    Everything that can be wrong with the configuration, the teacher, the shards or the folder is refused before a
    process group is made. Raises ValueError or OSError.
    """
    check_ranks(config.training, int(os.environ.get("WORLD_SIZE", "1")))
    run.check_output(output, resume)
    run.check_unchanged(output, config)
    check_streams(config, hashes=False)
    if config.warm_start.updates and config.warm_start.pairs:
        read_facts(Path(config.warm_start.pairs))
    weights = load_teacher(config, teacher)
    about = {"config": strict.to_dict(config), "teacher": checkpoint.hash_file(teacher / WEIGHTS)}
    _check_teacher(output, teacher, about["teacher"])
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    world = zero.start()
    task = Distillation(config, weights, world)
    reader = Source(config, world)
    peak = peak_flops(world.device, task.engines["student"].dtype) * world.ranks
    train(task, reader, config, world, output, resume, peak, about)


class Source:
    """Where an update's batch comes from: pairs in the warm start, if there are any, and the data."""

    def __init__(self, config: DistillConfig, world: zero.World) -> None:
        arguments = config, build_text_encoder(config.model.text), world.rank, world.ranks
        self.data = Reader(*arguments)
        self.paired = config.warm_start.updates if config.warm_start.pairs else 0
        self.pairs = PairReader(*arguments) if self.paired else None

    def batches(self, start: int) -> Iterator[Batch]:
        """This rank's batches from update `start` on, without end."""
        if self.pairs is not None and start < self.paired:
            yield from itertools.islice(self.pairs.batches(start), self.paired - start)
        yield from self.data.batches(max(start, self.paired))


def load_teacher(config: DistillConfig, folder: Path) -> AudioX:
    """The weights that a distillation starts from.

    Raises ValueError where their architecture is not the configuration's, naming the first difference.
    """
    teacher = load_weights(folder)
    theirs, ours = strict.to_dict(teacher.config), strict.to_dict(config.model)
    if theirs != ours:
        where, a, b = run.difference("model", theirs, ours)
        raise ValueError(f"{where}: the teacher in {folder} has {a!r}, this configuration {b!r}; make them one")
    return teacher.float()


def _check_teacher(output: Path, folder: Path, teacher: str) -> None:
    """Raises ValueError when the run went on so far with another teacher."""
    for before in checkpoint.complete(output)[:1]:
        if checkpoint.read_manifest(before)["teacher"] != teacher:
            raise ValueError(
                f"{output} was begun with another teacher than {folder}: give --teacher that one, or another --output"
            )
