"""One report on one or more sets of weights: T2A-bench, the eight tasks, latency."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...models.audiox import SamplingConfig, count_parameters
from ...models.judge import Judge
from ...models.sampler import changed
from ..core.hardware import describe
from ..core.tasks import DOMAINS
from ..generation.generator import Generator
from ..pages.embedded_media import Column, Sound
from ..training.logs import progress
from .held_out import check_embedded, draw_unseen
from .judge import Annotation, annotate
from .judge_cache import load_or_train_judge
from .latency import Way, efficiency_rows
from .metrics import TYPES, Prompt, score
from .result_cache import Parts
from .t2a_benchmark import Outcome, T2ABench, differences
from .task_benchmark import Row, clips_needed, task_rows


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    prompts: int = 100  # of each of the four types of T2A-bench
    tasks: int = 100  # clips a task; 0 leaves the tasks out
    seed: int = 0
    latency_steps: tuple[int, ...] | None = ()  # at which the first weights are timed too; None: no latencies at all

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.tasks < 0 or self.tasks == 1 or self.seed < 0:
            raise ValueError(
                f"prompts {self.prompts} must be at least 1, tasks {self.tasks} 0 or at least 2 (clips exchange their "
                f"conditions), seed {self.seed} at least 0"
            )


@dataclass(frozen=True)
class Candidate:
    """Weights under evaluation, and how they are sampled."""

    name: str  # of the row
    weights: str
    generator: Generator
    sampling: SamplingConfig
    digest: str = ""  # hash of the weights
    tasks: bool = True  # besides T2A-bench


@dataclass(frozen=True)
class Evaluation:
    """`report` goes into a JSON file, `sounds` go into a page."""

    report: dict[str, Any]
    sounds: list[Sound]


def evaluate(candidates: Sequence[Candidate], judge_folder: Path, plan: Plan, parts: Parts) -> Evaluation:
    """Judges every candidate on the same prompts and clips; the second and later ones are compared with the first.

    What `parts` holds of an evaluation that was stopped is not judged again.

    Raises:
        ValueError: weights make other clips than the embedded scenes or differ in their codec, two candidates share a
            name, or the plan asks for too few clips.
    """
    codec = candidates[0].generator.model.config.codec
    for candidate in candidates:
        check_embedded(candidate.generator.model.config, candidate.name)
        if candidate.generator.model.config.codec != codec:
            raise ValueError(
                f"{candidate.name}: its codec differs from that of {candidates[0].name}; evaluate it alone"
            )
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        raise ValueError(
            f"two weights have one name: {', '.join(names)}; rename a folder, so that columns can be told apart"
        )
    judge, judge_report = load_or_train_judge(judge_folder, codec)
    bench = T2ABench(judge, candidates[0].generator.codec, plan.prompts, plan.seed)
    report: dict[str, Any] = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": describe() | {"threads": str(torch.get_num_threads())},
        "plan": asdict(plan),
        "judge": {key: value for key, value in judge_report.items() if key != "hears"},
        "models": [_model(candidate) for candidate in candidates],
        "references": bench.references(),
        "tasks": [],
    }
    outcomes = []
    for candidate in candidates:
        key: dict[str, Any] = {
            "candidate": _model(candidate),
            "digest": candidate.digest,
            "dtype": str(candidate.generator.dtype),
        }
        key |= {"tasks": candidate.tasks, "plan": report["plan"], "judge": report["judge"]}
        outcome, rows = parts.get(key, partial(_judge, candidate, judge, bench, plan))
        outcomes.append(outcome)
        report["tasks"] += rows
    report["results"] = [outcome.row for outcome in outcomes]
    report["differences"] = [differences(outcomes[0], other, plan.seed) for other in outcomes[1:]]
    report["efficiency"] = efficiency_rows(_timed(candidates, plan))
    return Evaluation(report, examples(bench, outcomes, codec.sample_rate))


def _judge(candidate: Candidate, judge: Judge, bench: T2ABench, plan: Plan) -> tuple[Outcome, list[Row]]:
    config, clips = candidate.generator.model.config, len(bench.prompts)
    each = plan.tasks if candidate.tasks else 0
    with progress(clips + clips_needed(each), candidate.name, " clips") as bar:
        outcome = bench.run(candidate.generator, candidate.name, candidate.sampling, bar)
        if not each:
            return outcome, []
        audio, music = (draw_unseen(config, domain, each, plan.seed) for domain in DOMAINS)
        hear = partial(annotate, judge)
        rows = task_rows(candidate.generator, hear, audio, music, candidate.sampling, plan.seed, bar)
    return outcome, [{"model": candidate.name} | row for row in rows]


def examples(bench: T2ABench, outcomes: Sequence[Outcome], sample_rate: int, per_type: int = 2) -> list[Sound]:
    """The first prompts of every type with what the judge hears in the true scene and in each model's sound."""
    each = len(bench.prompts) // len(TYPES)
    chosen = [k * each + i for k in range(len(TYPES)) for i in range(min(per_type, each))]
    columns = [("true scene", bench.raw), *((str(outcome.row["model"]), outcome.waves) for outcome in outcomes)]
    heard = [annotate(bench.judge, waves[chosen]) for _, waves in columns]
    sounds = []
    for place, index in enumerate(chosen):
        prompt = bench.prompts[index]
        parts = [
            Column(name, waves[index], _says(what[place]), _right(prompt, what[place]))
            for (name, waves), what in zip(columns, heard, strict=True)
        ]
        sounds.append(Sound(prompt.kind, prompt.text, tuple(parts), sample_rate))
    return sounds


def _says(heard: Annotation) -> str:
    events = [f"{e.category} {e.onset:.1f}–{e.offset:.1f}" for e in heard.events]
    music = [f"{heard.instrument} at {heard.tempo} bpm"] if heard.instrument else []
    return ", ".join(events + music) or "nothing"


def _right(prompt: Prompt, heard: Annotation) -> bool:
    """By the metric of the prompt's type."""
    scores = score([prompt], [heard])
    metric = {"category": scores.cat, "count": scores.cnt, "order": scores.ord, "timestamp": scores.ts}[prompt.kind]
    return bool(metric[0])


def _timed(candidates: Sequence[Candidate], plan: Plan) -> list[Way]:
    """Every model once as it is sampled, and the first at the plan's other numbers of steps, fewest first."""
    if plan.latency_steps is None:
        return []
    ways: dict[tuple[Generator, int], Candidate] = {}
    for candidate in candidates:  # another way to sample weights comes after their own
        if all(generator is not candidate.generator for generator, _ in ways):
            ways[candidate.generator, candidate.sampling.steps] = candidate
    first = candidates[0]
    for steps in plan.latency_steps:
        ways.setdefault((first.generator, steps), replace(first, sampling=changed(first.sampling, steps, None)))
    ordered = sorted(ways.values(), key=lambda c: (c.generator is not first.generator, c.sampling.steps))
    return [(c.weights, c.generator, c.sampling) for c in ordered]


def _model(candidate: Candidate) -> Row:
    parameters = count_parameters(candidate.generator.model)["total"]
    about = {"model": candidate.name, "weights": candidate.weights, "parameters": parameters}
    return about | asdict(candidate.sampling)
