"""Makes the pairs of `data/pairs.py`. Every rank solves the teacher's ODE for its share of every batch."""

import itertools
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from ...models import strict
from ...models.encoders.build import build_text_encoder
from ...models.sampler import shifted_timesteps
from ...models.weights import float32_copy
from ..core.config import check_ranks
from ..core.distill_config import DistillConfig
from ..core.files import write_json
from ..data.distill_draws import DistillDraws
from ..data.pairs import PAIRS_FILE, PairSettings, check_resumable, pair_record, solver_settings
from ..data.reader import Reader, StepSamples, check_no_pairs, check_streams
from ..data.record import Record
from ..data.shards import ShardWriter
from ..engine import kernel_selection, zero
from ..engine.process_group import World, init_process_group
from ..resilience.stop_signal import StoppedError, StopSignal
from ..resilience.watchdog import Watchdog
from ..training.logs import progress
from ..training.pretrain import configure_model
from .distill import load_teacher
from .teacher import Teacher

PART = 4  # global batches per folder: the most that an interruption costs, and what a stop waits for


def make_pairs(config: DistillConfig, teacher: Path | str, out: Path, count: int) -> int:
    """Makes at least `count` pairs in `out` and keeps those that are there. Returns how many there are.

    Raises ValueError or OSError if something is wrong with the configuration, the teacher or the shards, or if `out`
    was started with other settings.
    """
    ranks, batch = int(os.environ.get("WORLD_SIZE", "1")), config.training.global_batch
    if "endpoint" not in config.targets:
        raise ValueError(
            f"warm_start.targets: {list(config.targets)}; a student that regresses on no endpoint needs no pairs: "
            f"distil without them"
        )
    check_ranks(config.training, ranks)
    check_no_pairs(config)
    check_streams(config, hashes=False)
    kernel_selection.check_kernels(config.kernels, config.teacher.precision, config.model)
    weights, digest = load_teacher(config, teacher)
    batches = -(-count // batch)
    facts = PairSettings(
        **solver_settings(config, digest),
        data=config.data,
        seed=config.training.seed,
        global_batch=batch,
        ranks=ranks,
        batches=batches,
        batches_per_part=min(PART, batches),
    )
    check_resumable(out, facts)
    with Watchdog(config.timeouts) as watchdog:
        world = init_process_group(config.training.cpu_threads, config.timeouts)
        watchdog.connect(world.rank, world.ranks)
        if world.rank == 0:
            write_json(out / PAIRS_FILE, strict.to_dict(facts))
        present = [[facts.folder(out, part, rank).is_dir() for rank in range(ranks)] for part in range(facts.parts)]
        torch.distributed.barrier()  # every rank has looked before any rank writes
        missing = [part for part, shares in enumerate(present) if not all(shares)]
        if missing:
            ops = kernel_selection.select_for_run(config, world, config.teacher.precision, out).ops()
            training, sharded = replace(config.training, fp8=False), config.teacher.sharded
            model = configure_model(float32_copy(weights, world.device), training, ops, sharded)
            frozen = zero.FrozenModel(model, config.teacher.precision, sharded, world.device)
            _PairMaker(config, facts, frozen, world, out, watchdog).parts(missing)
        torch.distributed.barrier()
    return batches * batch


class _PairMaker:
    """Makes one rank's share of every part."""

    def __init__(
        self,
        config: DistillConfig,
        facts: PairSettings,
        frozen: zero.FrozenModel,
        world: World,
        out: Path,
        watchdog: Watchdog,
    ) -> None:
        self.config, self.facts, self.world, self.out, self.watchdog = config, facts, world, out, watchdog
        encode_text = build_text_encoder(config.model.text)
        self.teacher = Teacher(frozen, encode_text, config.distillation.guidance)
        self.reader = Reader(config, encode_text, world.rank, world.ranks)
        self.draws = DistillDraws(facts.seed, world.device)
        self.times = shifted_timesteps(facts.steps, facts.shift)
        self.stop, self.compiled = StopSignal(), False

    def parts(self, missing: list[int]) -> None:
        """Makes these parts, in the order of the data. Raises StoppedError when asked to stop."""
        facts, first = self.facts, missing[0]
        samples, each = self.reader.samples(first * facts.batches_per_part), facts.global_batch
        left = facts.batches - first * facts.batches_per_part
        with self.stop, progress(left * each, self.out.name, " pairs", active=self.world.rank == 0) as bar:
            for part in range(first, facts.parts):
                taken = itertools.islice(
                    samples, min(facts.batches_per_part, facts.batches - part * facts.batches_per_part)
                )
                if part not in missing:
                    bar.update(each * sum(1 for _ in taken))
                    continue
                self._part(part, taken, bar)
                if self.stop.agree()[0] and part != missing[-1]:
                    raise StoppedError(f"asked to stop: {part + 1} of {facts.parts} parts are made; run it again")

    def _part(self, part: int, samples: Iterator[StepSamples], bar: tqdm) -> None:
        """All ranks compute, because a sharded teacher needs them. A rank writes only what it has not written
        before."""
        folder, model = self.facts.folder(self.out, part, self.world.rank), self.config.model
        writer = nullcontext() if folder.is_dir() else ShardWriter(folder, model.codec, model.text, model.video)
        with writer as shards:
            for s in samples:
                self.watchdog.enter("step" if self.compiled else "first step", s.step)
                self.compiled = True
                for record in self._pairs(s):
                    if shards is not None:
                        shards.write(record)
                bar.update(self.facts.global_batch)
            self.watchdog.enter("writing part", part)

    def _pairs(self, s: StepSamples) -> Iterator[Record]:
        assembler = self.reader.assemble
        choices = [assembler.choose(r, t, s.step, p) for r, t, p in zip(s.records, s.tasks, s.indices, strict=True)]
        latents = assembler.latents(s.records, s.step, s.indices)
        whole = assembler.batch(s.records, choices, latents, s.indices)
        ends = [
            self.teacher.endpoint(micro, self.draws.rollout(s.step, micro, 0)[0], self.times).cpu()
            for micro in whole.to(self.world.device).split(self.config.training.micro_batch)
        ]
        for record, choice, endpoint, index in zip(s.records, choices, torch.cat(ends), s.indices, strict=True):
            yield pair_record(record, choice, endpoint, (self.facts.seed, s.step, index))
