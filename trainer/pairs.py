"""Makes the pairs of `data/pairs.py`: every rank solves the teacher's ODE for its share of every batch."""

import collections
import itertools
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from tqdm import tqdm

from ..models.audiox import WEIGHTS
from ..models.encoders.build import build_text_encoder
from ..models.sampler import levels
from . import checkpoint, zero
from .config import check_ranks
from .data.pairs import PairFacts, to_pair, write_facts
from .data.reader import Reader, Samples, check_streams
from .data.record import Record
from .data.shards import ShardWriter
from .data.tasks import Assembler
from .distill_config import DistillConfig
from .distill_run import load_teacher
from .draws import Draws
from .teacher import Teacher

PART = 32  # global batches a folder: what an interruption costs at most


def make_pairs(config: DistillConfig, folder: Path, out: Path, count: int) -> int:
    """At least `count` pairs in `out`; parts that are there already are kept. Returns how many there are.

    Raises ValueError or OSError where something is wrong with the configuration, the teacher or the shards, or where
    `out` was begun otherwise.
    """
    check_ranks(config.training, int(os.environ.get("WORLD_SIZE", "1")))
    check_streams(config, hashes=False)
    weights = load_teacher(config, folder)
    world = zero.start()
    batch, warm = config.training.global_batch, config.warm_start
    needed = -(-count // batch)
    each = min(PART, needed)
    facts = PairFacts(
        teacher=checkpoint.hash_file(folder / WEIGHTS),
        guidance=config.distillation.guidance,
        steps=warm.steps,
        shift=warm.shift,
        seed=config.training.seed,
        global_batch=batch,
        ranks=world.ranks,
        parts=-(-needed // each),
        batches=each,
    )
    if world.rank == 0:
        write_facts(out, facts)
    torch.distributed.barrier()
    frozen = zero.Frozen(weights, config.teacher.precision, config.teacher.sharded, world.device)
    teacher = Teacher(frozen, config.model, config.distillation.guidance, config.distillation.blocks)
    reader = Reader(config, build_text_encoder(config.model.text), world.rank, world.ranks)
    held = [[facts.folder(out, part, rank).is_dir() for rank in range(world.ranks)] for part in range(facts.parts)]
    torch.distributed.barrier()  # every rank has looked before any writes
    missing = [part for part, shares in enumerate(held) if not all(shares)]
    if missing:
        making = _Making(config, facts, teacher, world, out)
        samples = reader.samples(missing[0] * each)
        with tqdm(total=len(missing) * each * batch, unit=" pairs", desc=out.name, disable=world.rank != 0) as bar:
            for part in range(missing[0], facts.parts):
                taken = itertools.islice(samples, each)
                if part in missing:
                    making.part(part, taken, reader.assemble, bar)
                else:
                    collections.deque(taken, maxlen=0)
    torch.distributed.barrier()
    return facts.parts * each * batch


class _Making:
    """One rank's share of every part."""

    def __init__(self, config: DistillConfig, facts: PairFacts, teacher: Teacher, world: zero.World, out: Path) -> None:
        self.config, self.facts, self.teacher, self.world, self.out = config, facts, teacher, world, out
        self.draws = Draws(facts.seed, world.device)
        self.times = levels(facts.steps, facts.shift)

    def part(self, part: int, samples: Iterator[Samples], assembler: Assembler, bar: tqdm) -> None:
        """All ranks compute, which a sharded teacher needs; a rank writes what it has not written before."""
        folder, model = self.facts.folder(self.out, part, self.world.rank), self.config.model
        writer = nullcontext() if folder.is_dir() else ShardWriter(folder, model.codec, model.text, model.video)
        with writer as shards:
            for s in samples:
                for record in self._pairs(s, assembler):
                    if shards is not None:
                        shards.write(record)
                bar.update(self.facts.global_batch)

    def _pairs(self, s: Samples, assembler: Assembler) -> Iterator[Record]:
        choices = [assembler.choose(r, t, s.step, p) for r, t, p in zip(s.records, s.tasks, s.places, strict=True)]
        latents = [assembler.latent(r, s.step, p) for r, p in zip(s.records, s.places, strict=True)]
        whole = assembler.batch(s.records, choices, latents, s.places)
        ends = [
            self.teacher.endpoint(micro, self.draws.rollout(s.step, micro, 0)[0], self.times).cpu()
            for micro in whole.split(self.config.training.micro_batch)
        ]
        for record, choice, endpoint, place in zip(s.records, choices, torch.cat(ends), s.places, strict=True):
            yield to_pair(record, choice, endpoint, (self.facts.seed, s.step, place))
