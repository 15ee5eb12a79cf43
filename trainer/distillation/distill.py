"""Runs a distillation from its configuration to its end."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from ...kernels.ops import Ops
from ...models import strict
from ...models.audiox import WEIGHTS
from ...models.config import without_weight_paths
from ...models.encoders.build import build_text_encoder
from ...models.networks import Network, build_network
from ..checkpoint import load, rollback
from ..checkpoint.hub import commit_of, find_folder
from ..checkpoint.initial_weights import InitRecord, init_metadata, read_initial_weights
from ..checkpoint.weights_folder import load_weights
from ..core.distill_config import DistillConfig
from ..core.files import hash_file
from ..core.hardware import peak_flops
from ..core.integrity import MANIFEST, read_manifest
from ..cost.role_bytes import readable
from ..data.batches import Batch
from ..data.pairs import PairReader, check_pairs
from ..data.reader import Reader
from ..engine import kernel_selection, zero
from ..engine.process_group import World, init_process_group
from ..resilience.watchdog import Watchdog
from ..self_test.gradients import check_gradients
from ..training import run_folder
from ..training.loop import train
from ..training.scores import Scores, check_scores
from ..training.trackers import check_trackers
from .updates import Distillation


def distill(
    config: DistillConfig,
    teacher: Path | str,
    output: Path,
    resume: bool,
    from_step: int | None = None,
    self_test: bool | None = None,
) -> None:
    """Trains to `training.steps` updates of the student in rounds and writes into `output`. Resumes from the newest
    checkpoint, or from `from_step`.

    Checks the configuration, the teacher, the shards and the folder before it makes a process group, and then
    DeepSpeed's gradients (`self_test`: see `check_gradients`). Raises ValueError or OSError.
    """
    from_step = rollback.asked_step(output, from_step)
    run_folder.check_start(config, output, resume, from_step)
    check_scores(config)
    check_trackers(config)
    kernel_selection.check_kernels(config.kernels, config.precision, config.model)
    weights, digest = load_teacher(config, teacher)
    before = load.newest_manifest(output, from_step)
    if before and before["teacher"] != digest:
        raise ValueError(
            f"{output} was started with another teacher than {teacher}: give that one as --teacher, or another --output"
        )
    if config.paired_updates and (before is None or before["step"] < config.paired_updates):
        check_pairs(config, digest)
    initial = read_initial_weights(config.init.weights) if config.init.weights and not before else None
    with Watchdog(config.timeouts) as watchdog:
        world = init_process_group(config.training.cpu_threads, config.timeouts)
        watchdog.connect(world.rank, world.ranks)
        ops = kernel_selection.select_for_run(config, world, config.precision, output).ops()
        check_gradients(config, untrained, world, ops, self_test)
        trainer = Distillation(config, weights, world, ops, initial)
        initial = None  # its memory is needed
        metadata = {"config": strict.to_dict(config), "teacher": digest}
        if weights.license:
            metadata["license"] = weights.license
        record = trainer.init_record
        if config.student.lora and before is None:
            commit = commit_of(str(teacher), find_folder(teacher))
            record = InitRecord(str(teacher), digest, len(weights.state_dict()), (), (), weights.license, commit)
        metadata |= init_metadata(record, before, world.rank)
        if world.rank == 0:
            print("\n".join(memory_lines(trainer)), flush=True)
        reader = DistillationReader(config, world)
        peak = peak_flops(world.device, trainer.engines["student"].dtype) * world.ranks
        scores = Scores(config, world, output) if config.scores.every else None
        train(trainer, reader, config, world, output, resume, peak, metadata, watchdog, from_step, scores=scores)


def untrained(config: DistillConfig, world: World, ops: Ops | None, engine: Callable[..., zero.Engine]) -> Distillation:
    """A distillation of a new model, for the gradient self-test."""
    return Distillation(config, build_network(config.model), world, ops, engine=engine)


def memory_lines(trainer: Distillation) -> Iterator[str]:
    """One line per role with the memory that it will take."""
    for name, planned in trainer.planned_bytes().items():
        where = ", its host included" if name in trainer.engines and trainer.engines[name].offload else ""
        parts = ", ".join(f"{part} {readable(count)}" for part, count in asdict(planned).items() if count)
        yield f"{name}: {readable(planned.total)} per rank{where} ({parts})"


class DistillationReader:
    """The batches of a distillation: pairs in the warm start, if there are any, then the data."""

    def __init__(self, config: DistillConfig, world: World) -> None:
        self.config = config
        self.arguments = build_text_encoder(config.model.text), world.rank, world.ranks
        self.data = Reader(config, *self.arguments)

    def batches(self, start: int) -> Iterator[Batch]:
        """This rank's batches from update `start` on, without end."""
        paired = self.config.paired_updates
        if start < paired:
            pairs = PairReader(self.config, *self.arguments)
            yield from itertools.islice(pairs.batches(start), paired - start)
        yield from self.data.batches(max(start, paired))


def load_teacher(config: DistillConfig, location: Path | str) -> tuple[Network, str]:
    """The weights that a distillation starts from, of a folder or of this name on the hub, and their hash.

    Raises ValueError with the first difference where their architecture is not the configuration's, ChangedError where
    they have changed since they were written.
    """
    folder = find_folder(location)
    teacher = load_weights(folder, mapped=True)
    theirs, ours = without_weight_paths(teacher.config), without_weight_paths(config.model)
    if theirs != ours:
        where, a, b = strict.difference("model", theirs, ours)
        raise ValueError(f"{where}: the teacher in {location} has {a!r}, this configuration {b!r}; make them equal")
    listed = (folder / MANIFEST).exists()  # then loading has compared the file with its hash
    return teacher, read_manifest(folder)["files"][WEIGHTS]["xxh3"] if listed else hash_file(folder / WEIGHTS)
