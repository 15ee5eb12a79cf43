"""T2A-bench in small (appendix A-C) and the quality metrics of section VI-B, as pure functions.

The paper's tolerance for time stamps is 1 s in clips of 10 s, so here it is a tenth of the clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..scenes.scene import AUDIO_CATEGORIES, MAX_EVENTS, SECONDS, Event, Scene, audio_scene, scene_annotation
from ..scenes.scene_captions import category_captions, count_captions, order_captions, time_captions
from .judge import Annotation

TYPES: tuple[str, ...] = ("category", "count", "order", "timestamp")
TOLERANCE = 0.1 * SECONDS
PROMPT_SEED = 2_000_003  # apart from every data set's seed

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Prompt:
    """A text, and what a clip that follows it holds: `events` in order, of which only a timestamp prompt's times bind.

    `scene` is a true scene that follows the prompt: what it scores is the most that the judge can see.
    """

    kind: str  # one of TYPES
    text: str
    events: tuple[Event, ...]
    scene: Scene

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(event.category for event in self.events)


@dataclass(frozen=True)
class Scores:
    """One boolean for each prompt that a metric applies to, in the prompts' order (appendix A-C)."""

    cat: Bools  # every named category was heard; all prompts
    cnt: Bools  # the named category was heard exactly as often; count prompts
    ord: Bools  # the events heard are the sequence named; ordering prompts
    ts: Bools  # start and end of the named sound are within the tolerance; timestamp prompts

    def rates(self) -> dict[str, float]:
        """Share of correct judgments by metric, nan where no prompt applies."""
        values = {"cat_acc": self.cat, "cnt_acc": self.cnt, "ord_acc": self.ord, "ts_acc": self.ts}
        return {name: float(v.mean()) if v.size else float("nan") for name, v in values.items()}


def draw_prompts(n_per_type: int, seed: int) -> list[Prompt]:
    """`n_per_type` prompts of each of the four types of appendix A-C.

    One to five distinct categories equally often; one category one to five times equally often; two or three distinct
    categories in order; one category with start and end.
    """
    rng = np.random.default_rng([PROMPT_SEED, seed])
    return [_draw_prompt(kind, i, rng) for kind in TYPES for i in range(n_per_type)]


def _draw_prompt(kind: str, i: int, rng: np.random.Generator) -> Prompt:
    names = [AUDIO_CATEGORIES[k] for k in rng.permutation(len(AUDIO_CATEGORIES))]
    if kind == "category":
        names = names[: 1 + i % MAX_EVENTS]
    elif kind == "count":
        names = names[:1] * (1 + i % MAX_EVENTS)
    elif kind == "order":
        names = names[: 2 + i % 2]
    else:
        names = names[:1]
    scene = audio_scene(names, rng)
    facts, events = scene_annotation(scene), scene.events
    if kind == "category":
        texts = category_captions(facts)
    elif kind == "count":
        texts = count_captions(facts, rng)
    elif kind == "order":
        texts = order_captions(facts, rng)
    else:
        texts = time_captions(facts)
        # The target is what the text says, and the text has one decimal.
        events = tuple(Event(e.category, round(e.onset, 1), round(e.offset, 1)) for e in events)
    return Prompt(kind, texts[rng.integers(len(texts))], events, scene)


def score(prompts: Sequence[Prompt], annotations: Sequence[Annotation]) -> Scores:
    """The four accuracies' single judgments.

    Raises:
        ValueError: there are not as many annotations as prompts.
    """
    if len(prompts) != len(annotations):
        raise ValueError(f"{len(prompts)} prompts but {len(annotations)} annotations")
    pairs = list(zip(prompts, annotations, strict=True))
    return Scores(
        cat=np.array([set(p.order) <= set(a.order) for p, a in pairs], dtype=bool),
        cnt=np.array([a.order.count(p.order[0]) == len(p.order) for p, a in pairs if p.kind == "count"], dtype=bool),
        ord=np.array([a.order == p.order for p, a in pairs if p.kind == "order"], dtype=bool),
        ts=np.array([_on_time(p.events[0], a) for p, a in pairs if p.kind == "timestamp"], dtype=bool),
    )


def _on_time(target: Event, heard: Annotation) -> bool:
    """Where a category was heard more than once, its longest event is judged."""
    same = [event for event in heard.events if event.category == target.category]
    if not same:
        return False
    event = max(same, key=lambda e: e.offset - e.onset)
    return abs(event.onset - target.onset) <= TOLERANCE and abs(event.offset - target.offset) <= TOLERANCE


def chance(
    prompts: Sequence[Prompt], annotations: Sequence[Annotation], seed: int, rounds: int = 20
) -> dict[str, float]:
    """What the same sounds score against other prompts of their type: mean rates over shuffles within the types."""
    rng = np.random.default_rng(seed)
    members = [np.array([i for i, p in enumerate(prompts) if p.kind == kind], dtype=int) for kind in TYPES]
    rates = []
    for _ in range(rounds):
        order = np.arange(len(prompts))
        for indices in members:
            order[indices] = rng.permutation(indices)
        rates.append(score(prompts, [annotations[i] for i in order]).rates())
    return {name: float(np.mean([r[name] for r in rates])) for name in rates[0]}


def bootstrap_interval(
    values: NDArray[np.generic], seed: int, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Percentile interval of the mean of `values` (N,), such as the booleans of `Scores`.

    Raises:
        ValueError: there are no values.
    """
    if values.size == 0:
        raise ValueError("0 values have no mean; draw at least one prompt of the type")
    rng = np.random.default_rng(seed)
    means = values.astype(np.float64)[rng.integers(values.size, size=(resamples, values.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_ratio(
    below: NDArray[np.float64], above: NDArray[np.float64], seed: int, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float, float]:
    """mean(above) / mean(below) of values (N,) that belong together, and its percentile interval: every resample takes
    the same places of both."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(below.size, size=(resamples, below.size))
    ratios = above[drawn].mean(axis=1) / np.maximum(below[drawn].mean(axis=1), 1e-9)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(above.mean() / max(below.mean(), 1e-9)), float(low), float(high)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Distance of the Gaussians fitted to two sets of embeddings (N, E) and (M, E) (Heusel et al., 2017):
    |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) with the covariances A and B.

    Raises:
        ValueError: a set has fewer than two embeddings.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"sets of {len(a)} and {len(b)} embeddings; a covariance needs at least 2 in each")
    a, b = a.double(), b.double()
    shift = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    # (A B)^(1/2) has the trace of (R B R)^(1/2) with R = A^(1/2), which is symmetric and so safe to decompose.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return max(0.0, float(shift + cov_a.trace() + cov_b.trace() - 2 * cross))


def kl_divergence(reference: Tensor, generated: Tensor) -> float:
    """Mean KL(reference || generated) in nats over pairs of class distributions, (N, classes) each with rows summing to
    1 (appendix A-B). Row i of both belongs to the same prompt."""
    p, q = reference.double().clamp_min(1e-9), generated.double().clamp_min(1e-9)
    return float((p * (p.log() - q.log())).sum(dim=1).mean())


def inception_score(probabilities: Tensor) -> float:
    """exp of the mean KL from each clip's class distribution to their mean (appendix A-B).

    probabilities (N, classes), rows summing to 1 -> between 1 and `classes`.
    """
    p = probabilities.double().clamp_min(1e-9)
    return float((p * (p.log() - p.mean(dim=0).log())).sum(dim=1).mean().exp())
