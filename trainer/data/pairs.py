"""Pairs for the warm start of a student: noise, and the endpoint of a teacher's ODE that starts from it.

    PAIRS/pairs.json                              the settings that the pairs were made with
          part_00000_of_00008_rank_00003/         a folder of shards: one rank's share of some batches

A pair is an ordinary record whose latents are the endpoint. Its annotation holds the conditions, and the numbers that
the noise is drawn from. B batch, L latent frames, C latent channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...models import strict
from ...models.encoders.base import TextEncoder
from ..core.config import DataConfig, StreamConfig
from ..core.config_reader import read_json
from ..core.distill_config import DistillConfig
from .batches import Batch, BatchAssembler
from .condition_draws import SampleConditions
from .distill_draws import DistillDraws
from .reader import PAIRS_FILE, Reader, StepSamples
from .record import Record
from .shards import ShardError


@dataclass(frozen=True)
class PairSettings:
    """`pairs.json`: the settings that must be the same to resume a folder, and the number of its parts."""

    teacher: str  # hash of its weights
    precision: str
    guidance: float
    guidance_interval: tuple[float, ...]
    steps: int
    shift: float
    data: DataConfig  # the samples and their conditions
    seed: int
    global_batch: int
    ranks: int
    batches: int  # global batches in all
    batches_per_part: int  # the last part may have fewer

    @property
    def parts(self) -> int:
        return -(-self.batches // self.batches_per_part)

    def folder(self, base: Path, part: int, rank: int) -> Path:
        return base / f"part_{part:05d}_of_{self.parts:05d}_rank_{rank:05d}"

    def folders(self, base: Path) -> list[Path]:
        return [self.folder(base, part, rank) for part in range(self.parts) for rank in range(self.ranks)]


def solver_settings(config: DistillConfig, teacher: str) -> dict[str, Any]:
    """The part of the settings that the configuration and the hash of the teacher's weights decide."""
    warm = config.warm_start
    return {
        "teacher": teacher,
        "precision": config.teacher.precision,
        "guidance": config.distillation.teacher_guidance,
        "guidance_interval": config.distillation.guidance_interval,
        "steps": warm.ode_steps,
        "shift": warm.ode_shift,
    }


def read_pair_settings(base: Path) -> PairSettings:
    """Raises ShardError if the folder holds no pairs, is incomplete or has other keys than those of `PairSettings`."""
    if not (base / PAIRS_FILE).is_file():
        raise ShardError(f"{base / PAIRS_FILE} is missing: this is no folder of launch/pairs.py")
    try:
        facts: PairSettings = strict.parse(PairSettings, read_json(base / PAIRS_FILE))
    except ValueError as error:
        raise ShardError(f"{base / PAIRS_FILE}: {error}; make the pairs again with launch/pairs.py") from None
    missing = [folder.name for folder in facts.folders(base) if not folder.is_dir()]
    if missing:
        raise ShardError(
            f"{base}: {len(missing)} of {facts.parts * facts.ranks} parts are missing, the first is {missing[0]}; run "
            f"launch/pairs.py again, it resumes where it stopped"
        )
    return facts


def check_pairs(config: DistillConfig, teacher: str) -> None:
    """Raises ValueError if the pairs were made with another teacher or other solver settings."""
    base = Path(config.warm_start.pairs)
    facts = read_pair_settings(base)
    for name, value in solver_settings(config, teacher).items():
        if getattr(facts, name) != value:
            raise ValueError(
                f"{base} was made with {name} {getattr(facts, name)!r}, now it is {value!r}; make pairs with this "
                f"teacher and configuration by launch/pairs.py"
            )


def check_resumable(base: Path, facts: PairSettings) -> None:
    """Raises ValueError if a folder of pairs was started with other settings; names the difference."""
    if not (base / PAIRS_FILE).exists():
        return
    before, now = read_json(base / PAIRS_FILE), strict.to_dict(facts)
    for name in now:
        if found := strict.changes(name, before.get(name), now[name]):
            where, old, new = found[0]
            raise ValueError(
                f"{base} was started with {where} {old!r}, now it is {new!r}; keep the former, or give another --out"
            )


def pair_record(record: Record, choice: SampleConditions, endpoint: Tensor, origin: tuple[int, int, int]) -> Record:
    """The record of a pair. endpoint: (L, C). origin: seed, step and index of its noise."""
    given = choice.given_mask.int().tolist()
    condition = {"task": choice.task, "text": choice.text, "video": choice.video, "given": given}
    condition |= {"preceding": choice.preceding}
    latents = endpoint.numpy().astype(np.float32)
    return replace(
        record,
        id="-".join(map(str, origin)),
        latent_mean=latents,
        latent_std=np.zeros_like(latents),
        captions=[],
        annotation={"condition": condition, "noise": origin},
    )


class PairReader:
    """Batches of pairs, in the order of a `Reader`, with exact resume."""

    def __init__(self, config: DistillConfig, encode_text: TextEncoder, rank: int, ranks: int) -> None:
        """Raises ShardError or ValueError if the folder is damaged, incomplete, or made with other encoders."""
        base = Path(config.warm_start.pairs)
        streams = tuple(StreamConfig(str(f), {"T2A": 1.0}) for f in read_pair_settings(base).folders(base))
        data = replace(config.data, streams=streams)
        self.reader = Reader(replace(config, data=data), encode_text, rank, ranks)

    def batches(self, start: int) -> Iterator[Batch]:
        """Yield this rank's batches from update `start` on, forever."""
        for samples in self.reader.samples(start):
            yield pair_batch(self.reader.assemble, samples)


def pair_batch(assembler: BatchAssembler, samples: StepSamples) -> Batch:
    """A batch with endpoints as latents, and with the conditions and the noise that they were made from."""
    choices, noises = [], []
    for record in samples.records:
        condition: dict[str, Any] = record.annotation["condition"]
        given = torch.tensor(condition["given"], dtype=torch.float32)
        preceding = condition.get("preceding", False)  # which pairs of earlier revisions lack
        task, text, video = (condition[name] for name in ("task", "text", "video"))
        choices.append(SampleConditions(task, text, video, given, preceding=preceding))
        seed, step, index = record.annotation["noise"]
        noises.append(DistillDraws.first_noise(seed, step, index, record.latent_mean.shape))
    latents = torch.from_numpy(np.stack([record.latent_mean for record in samples.records])).float()
    batch = assembler.batch(samples.records, choices, latents, samples.indices)
    return replace(batch, noise=torch.stack(noises), streams=samples.streams)
