"""Prompts of T2A-bench on the embedded scenes, and the accuracies that it scores (appendix A-C).

The paper's tolerance for time stamps is 1 s in clips of 10 s; here too it is a tenth of the clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ..scenes.scene import (
    AUDIO_CATEGORIES,
    MAX_EVENTS,
    SECONDS,
    Scene,
    SoundEvent,
    audio_scene,
    scene_annotation,
    with_extra,
)
from ..scenes.scene_captions import category_captions, count_captions, order_captions, time_captions
from .annotation import Annotation

TYPES = {"category": "cat_acc", "count": "cnt_acc", "order": "ord_acc", "timestamp": "ts_acc"}  # and their metrics
TOLERANCE = 0.1 * SECONDS
PROMPT_SEED = 2_000_003  # differs from every data set's seed

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class BenchmarkPrompt:
    """A text and a true scene that follows it, whose score is the most that the judge can give."""

    kind: str  # one of TYPES
    text: str
    events: tuple[SoundEvent, ...]  # that the text names, in order; the times count in timestamp prompts only
    scene: Scene

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(event.category for event in self.events)


@dataclass(frozen=True)
class Scores:
    """One boolean for each prompt that a metric applies to, in the prompts' order (appendix A-C)."""

    cat: Bools  # every named category is in the annotation; all prompts
    cnt: Bools  # the named category is there exactly as often; count prompts
    ord: Bools  # the events are the named sequence; order prompts
    ts: Bools  # start and end of the named sound are within the tolerance; timestamp prompts

    def by_metric(self) -> dict[str, Bools]:
        return {f"{field.name}_acc": getattr(self, field.name) for field in fields(self)}

    def rates(self) -> dict[str, float]:
        """Share of correct judgments by metric, nan where no prompt applies."""
        return {name: float(v.mean()) if v.size else float("nan") for name, v in self.by_metric().items()}


def draw_prompts(n_per_type: int, seed: int, extra: str = "") -> list[BenchmarkPrompt]:
    """`n_per_type` prompts of each of the four types of appendix A-C.

    They name one to five distinct categories, equally often; one category one to five times, equally often; two or
    three distinct categories in order; or one category with its start and end. With `extra`, one of
    `EXTRA_CATEGORIES`, each names this category in the place of one of the others.
    """
    rng = np.random.default_rng([PROMPT_SEED, seed])
    return [_draw_prompt(kind, i, rng, extra) for kind in TYPES for i in range(n_per_type)]


def _draw_prompt(kind: str, i: int, rng: np.random.Generator, extra: str) -> BenchmarkPrompt:
    names = [AUDIO_CATEGORIES[k] for k in rng.permutation(len(AUDIO_CATEGORIES))]
    if kind == "category":
        names = names[: 1 + i % MAX_EVENTS]
    elif kind == "count":
        names = names[:1] * (1 + i % MAX_EVENTS)
    elif kind == "order":
        names = names[: 2 + i % 2]
    else:
        names = names[:1]
    scene = audio_scene(with_extra(names, extra, rng) if extra else names, rng)
    facts, events = scene_annotation(scene), scene.events
    if kind == "category":
        texts = category_captions(facts)
    elif kind == "count":
        texts = count_captions(facts, rng)
    elif kind == "order":
        texts = order_captions(facts, rng)
    else:
        texts = time_captions(facts)
        # The text has one decimal, and so has the target.
        events = tuple(SoundEvent(e.category, round(e.onset, 1), round(e.offset, 1)) for e in events)
    return BenchmarkPrompt(kind, texts[rng.integers(len(texts))], events, scene)


def score_prompts(prompts: Sequence[BenchmarkPrompt], annotations: Sequence[Annotation]) -> Scores:
    """Judge every prompt by the four accuracies.

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


def _on_time(target: SoundEvent, annotation: Annotation) -> bool:
    """If a category occurs more than once, its longest event counts."""
    same = [event for event in annotation.events if event.category == target.category]
    if not same:
        return False
    event = max(same, key=lambda e: e.offset - e.onset)
    return abs(event.onset - target.onset) <= TOLERANCE and abs(event.offset - target.offset) <= TOLERANCE


def chance(
    prompts: Sequence[BenchmarkPrompt], annotations: Sequence[Annotation], seed: int, rounds: int = 20
) -> dict[str, float]:
    """Mean rates of the same sounds against other prompts of their type, over `rounds` shuffles within the types."""
    rng = np.random.default_rng(seed)
    members = [np.array([i for i, p in enumerate(prompts) if p.kind == kind], dtype=int) for kind in TYPES]
    rates = []
    for _ in range(rounds):
        order = np.arange(len(prompts))
        for indices in members:
            order[indices] = rng.permutation(indices)
        rates.append(score_prompts(prompts, [annotations[i] for i in order.tolist()]).rates())
    return {name: float(np.mean([r[name] for r in rates])) for name in rates[0]}
