"""Sounds for fixed prompts by the weights in training, judged by scorers every so many steps.

B sounds, L latent frames, C latent channels, c sound channels, n samples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import soxr
import torch.distributed as dist
from torch import Tensor

from ..checkpoint import load
from ..core.config import BaseConfig
from ..core.english import amount
from ..engine.process_group import World
from ..generation.prompts import PATH_FIELDS, read_prompts
from ..media.source import MediaError
from ..scorers.build import build_scorers
from ..scorers.config import read_scorers
from ..scorers.scorer import Features
from ..scorers.scoring import ScoredSound, check_features
from ..scorers.sound_file import read_sound
from ..sound_evaluation.folders import EvaluatedPrompt, read_evaluated_prompts
from ..sound_evaluation.results import Conditions, MetricTable
from .previews import PromptSampler

PREFIX = "scores/"  # of their names in the logs

T = TypeVar("T")
Rows = dict[int, dict[str, Features]]  # by the prompt's number and the scorer's name


def check_scores(config: BaseConfig) -> None:
    """Raises ValueError where the prompts or the scorers of `scores` cannot serve a training."""
    if config.scores.every:
        read_scorers(Path(config.scores.scorers))
        read_fixed_prompts(config)


def read_fixed_prompts(config: BaseConfig) -> list[EvaluatedPrompt]:
    """The prompts of `scores.prompts`. Raises ValueError where they cannot be read, are fewer than two, or have no
    text or another condition."""
    file = Path(config.scores.prompts)
    given = [
        (line, prompt) for line, prompt in read_prompts(file, {}, False) if any(getattr(prompt, n) for n in PATH_FIELDS)
    ]
    if given:
        raise ValueError(f"scores.prompts: {file}, line {given[0][0]}: while training, sounds follow from text alone")
    prompts = read_evaluated_prompts(file)
    if len(prompts) < 2:
        raise ValueError(f"scores.prompts: {file} has {amount(len(prompts), 'prompt')}; give at least 2")
    return prompts


@dataclass(frozen=True)
class Score:
    """The value by which the best checkpoint is chosen."""

    metric: str
    value: float
    better: str  # "higher" or "lower"

    def beats(self, other: "Score | None") -> bool:
        if other is None or self.metric != other.metric:
            return True
        return self.value > other.value if self.better == "higher" else self.value < other.value


class Scores:
    """Every rank makes and hears its share of the sounds; all of them know the figures."""

    def __init__(self, config: BaseConfig, world: World, run: Path) -> None:
        """`run`: whose checkpoints say which score was the best so far. All ranks call this.

        Raises ValueError where a scorer lacks its weights, compares with videos or references that are not there, or
        hears no sound as short as a clip; or a reference cannot be read.
        """
        self.settings, self.world, self.run = config.scores, world, run
        self.prompts, self.codec = read_fixed_prompts(config), config.model.codec
        self.scorers, file = build_scorers(Path(config.scores.scorers), world.device)
        self.pad_to = file.pad_to
        self._check_scorers()
        share = range(world.rank, world.ranks * math.ceil(len(self.prompts) / world.ranks), world.ranks)
        self.mine = [i % len(self.prompts) for i in share]  # as many on each rank: some sounds are made twice
        self.sampler = PromptSampler(config, [self.prompts[i].text for i in self.mine], self.mine)
        self.references = self._hear_references()
        texts = [prompt.text for prompt in self.prompts]
        self.given = {
            s.name: Conditions(s.text_embeddings(texts))
            for s in self.scorers
            if any(m.kind == "text" for m in s.metrics)
        }
        self.best: tuple[int, Score] | None = None
        self.worse = 0  # scorings since the best
        self.due = False  # also after a step that cannot be saved: it stays so until one can

    def load(self, step: int) -> None:
        """Loads text encoder and codec, and looks up the best score up to a step, before the next one."""
        _ = self.sampler.conditions, self.sampler.codec
        self.best, self.worse = None, 0
        if folder := load.best_checkpoint(self.run, step):
            found = load.read_manifest(folder).get(load.SCORE)
            if found and found["metric"] == self.settings.best:
                self.best = load.step_of(folder), Score(**found)

    def is_due(self, done: int, last: bool, possible: bool) -> bool:
        """After `done` steps; only where the state can be saved, so that a checkpoint has its score."""
        self.due = self.due or last or done % self.settings.every == 0
        if self.due and possible:
            self.due = False
            return True
        return False

    def measure(self, sample: Callable[[PromptSampler], Tensor]) -> tuple[dict[str, float], str]:
        """The figures by their names in the logs, and a sentence where there are none. All ranks call this.

        `sample` gives latents (B, L, C) for the texts of a sampler.
        """
        waves = self.sampler.codec.decode(sample(self.sampler))
        rows: Rows = {}
        problem = ""
        if all(bool(wave.isfinite().all()) for wave in waves):
            try:
                rows = self._hear(dict(zip(self.mine, waves, strict=True)))
            except ValueError as error:  # of a network, as one that divides by the peak of silence: training continues
                problem = str(error)
        else:
            problem = "they are not finite"
        together, problems = self._gather(rows), self._gather({self.world.rank: problem})
        if missing := len(self.prompts) - len(together):
            why = next(filter(None, problems.values()), "")
            return {}, f"{missing} of {len(self.prompts)} sounds for the scorers have no scores: {why}"
        sounds = _as_sounds(together)
        values = {}
        for scorer in self.scorers:
            for metric in scorer.metrics:
                if self.references or not metric.needs_reference:
                    given = self.given.get(scorer.name, Conditions())
                    values[PREFIX + metric.name] = MetricTable(scorer, metric, sounds, self.references, given).value()
        return values, ""

    def judge(self, done: int, values: dict[str, float]) -> tuple[Score | None, str]:
        """The score that a checkpoint after `done` steps gets, and a sentence where it has long been getting worse."""
        value = values.get(PREFIX + self.settings.best, math.nan) if self.settings.best else math.nan
        if not math.isfinite(value):
            return None, ""
        score = Score(self.settings.best, value, self._better(self.settings.best))
        if self.best is None or score.beats(self.best[1]):
            self.best, self.worse = (done, score), 0
            return score, ""
        self.worse += 1
        if self.worse % self.settings.patience:
            return score, ""
        step, best = self.best
        return score, (
            f"{score.metric} is {score.value:.4g} and was {best.value:.4g} at step {step}: no better for {self.worse} "
            f"scorings; convert.py --best takes the best of the saved checkpoints"
        )

    def _better(self, name: str) -> str:
        return next(m.better for scorer in self.scorers for m in scorer.metrics if m.name == name)

    def _check_scorers(self) -> None:
        clip = max(self.codec.seconds, self.pad_to)
        have_references = self.prompts[0].reference is not None
        for scorer in self.scorers:
            if scorer.pictures:
                raise ValueError(
                    f"scorer {scorer.name} compares sound with video; leave it out of a training's scorers"
                )
            if scorer.shortest > clip:
                raise ValueError(
                    f"scorer {scorer.name} needs {scorer.shortest:g} s, and a clip has {clip:g} s; leave it out, or "
                    f"set pad_to"
                )
            for metric in scorer.metrics:
                if metric.kind == "inception" and metric.parts > len(self.prompts):
                    raise ValueError(
                        f"scorer {scorer.name}: {len(self.prompts)} prompts cannot make the {metric.parts} parts of an "
                        f"inception score; give more prompts, or fewer `parts`"
                    )
        names = [m.name for scorer in self.scorers for m in scorer.metrics if have_references or not m.needs_reference]
        if not names:
            raise ValueError("scores.scorers: every metric needs references; give `reference` in the prompts' lines")
        if self.settings.best and self.settings.best not in names:
            raise ValueError(
                f"scores.best: {self.settings.best!r} is no metric here; expected one of {', '.join(names)}"
            )

    def _hear_references(self) -> list[ScoredSound]:
        """Of all prompts, if they have references; each rank reads its share."""
        if self.prompts[0].reference is None:
            return []
        rates, shortest = {scorer.rate for scorer in self.scorers}, max(scorer.shortest for scorer in self.scorers)
        rows: Rows = {}
        for i in dict.fromkeys(self.mine):
            reference = self.prompts[i].reference
            assert reference
            try:
                sound = read_sound(reference, rates, shortest, self.pad_to)
            except MediaError as error:
                raise ValueError(f"scores.prompts: line {self.prompts[i].line}: {error}") from None
            rows[i] = {s.name: s.features([sound.waves[s.rate]])[0] for s in self.scorers}
        return _as_sounds(self._gather(rows))

    def _hear(self, waves: dict[int, Tensor]) -> Rows:
        """waves (c, n) of prompts at the codec's rate -> their features."""
        rows: Rows = {i: {} for i in waves}
        mono = [wave.mean(dim=0).float().cpu().numpy() for wave in waves.values()]
        size = round(self.pad_to * self.codec.sample_rate)
        padded = [np.pad(wave, (0, max(0, size - wave.size))) for wave in mono]
        for scorer in self.scorers:
            heard = scorer.features([soxr.resample(wave, self.codec.sample_rate, scorer.rate) for wave in padded])
            for i, row in zip(waves, heard, strict=True):
                check_features(scorer, row, f"prompt {self.prompts[i].id}")
                rows[i][scorer.name] = row
        return rows

    def _gather(self, rows: dict[int, T]) -> dict[int, T]:
        """The rows of all ranks. All ranks call this."""
        if self.world.ranks == 1:
            return rows
        found: list[dict[int, T]] = [{} for _ in range(self.world.ranks)]
        dist.all_gather_object(found, rows)
        return {i: row for part in found for i, row in part.items()}


def _as_sounds(rows: Rows) -> list[ScoredSound]:
    """In the prompts' order."""
    return [ScoredSound(Path(str(i)), features=rows[i]) for i in sorted(rows)]
