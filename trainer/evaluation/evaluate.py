"""One report on one or more sets of weights: T2A-bench, the eight tasks, latency."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...models.audiox import SamplingConfig
from ...models.judge import Judge
from ...models.sampler import override_sampling
from ..core.hardware import describe
from ..core.tasks import DOMAINS
from ..generation.generator import Generator
from ..pages.embedded_media import Rendition, SoundComparison
from ..training.logs import progress
from .annotation import Annotation, annotate_waves
from .held_out import check_embedded, draw_held_out
from .latency import TimedModel, efficiency_rows
from .pretrained_judge import load_or_train_judge
from .result_cache import ResultCache
from .t2a_benchmark import Row, T2ABench, T2AResult, accuracy_differences
from .t2a_prompts import TYPES, BenchmarkPrompt, score_prompts
from .task_benchmark import clips_needed, task_rows


@dataclass(frozen=True)
class EvaluationSettings:
    """The extent of an evaluation."""

    prompts: int = 100  # of each of the four types of T2A-bench
    tasks: int = 100  # clips per task; 0 leaves the tasks out
    seed: int = 0
    latency_steps: tuple[int, ...] | None = ()  # at which the first weights are timed too; None: no latencies at all
    extra: str = ""  # a category that ordinary scenes do not have: also judge prompts with it
    mixtures: bool = False  # also judge inpainting and completion with text and video

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.tasks < 0 or self.tasks == 1 or self.seed < 0:
            raise ValueError(
                f"prompts {self.prompts} must be at least 1, tasks {self.tasks} 0 or at least 2 (clips exchange their "
                f"conditions), seed {self.seed} at least 0"
            )


@dataclass(frozen=True)
class EvaluatedModel:
    """Weights with the sampling that is evaluated."""

    name: str  # of the row
    weights: str
    generator: Generator
    sampling: SamplingConfig
    digest: str = ""  # hash of the weights
    tasks: bool = True  # evaluate the tasks as well as T2A-bench

    def to_row(self) -> Row:
        parameters = sum(p.numel() for p in self.generator.model.parameters())
        return {"model": self.name, "weights": self.weights, "parameters": parameters} | asdict(self.sampling)


@dataclass(frozen=True)
class EvaluationResult:
    """`report` goes into a JSON file, `comparisons` go into a page."""

    report: dict[str, Any]
    comparisons: list[SoundComparison]


def evaluate(
    models: Sequence[EvaluatedModel], judge_folder: Path, settings: EvaluationSettings, cache: ResultCache
) -> EvaluationResult:
    """Judges every model on the same prompts and clips, and compares the others with the first.

    A model that an interrupted evaluation has judged is read from the cache.

    Raises:
        ValueError: weights make other clips than the embedded scenes or differ in their codec, two models share a name,
            or the settings ask for too few clips.
    """
    codec = models[0].generator.model.config.codec
    for model in models:
        check_embedded(model.generator.model.config, model.name)
        if model.generator.model.config.codec != codec:
            raise ValueError(f"{model.name}: its codec differs from that of {models[0].name}; evaluate it alone")
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"two weights share a name: {', '.join(names)}; rename a folder, so that columns differ")
    judge, judge_report = load_or_train_judge(judge_folder, codec, extra=settings.extra)
    bench = T2ABench(judge, models[0].generator.codec, settings.prompts, settings.seed)
    report: dict[str, Any] = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": describe() | {"threads": str(torch.get_num_threads())},
        "settings": asdict(settings),
        "judge": {key: value for key, value in judge_report.items() if key != "codec_config"},
        "models": [model.to_row() for model in models],
        "references": bench.references(),
        "tasks": [],
    }
    results = []
    for model in models:
        key = _cache_key(model, settings, report["judge"]) | {"tasks": model.tasks}
        result, rows = cache.get(key, partial(_judge, model, judge, bench, settings))
        results.append(result)
        report["tasks"] += rows
    report["results"] = [result.row for result in results]
    report["differences"] = [accuracy_differences(results[0], other, settings.seed) for other in results[1:]]
    comparisons = compare_sounds(bench, results, codec.sample_rate)
    if settings.extra:
        report["extra"], more = _judge_extra(models, judge, settings, report["judge"], cache)
        comparisons = more + comparisons
    report["efficiency"] = efficiency_rows(_timed_models(models, settings))
    return EvaluationResult(report, comparisons)


def _judge(
    model: EvaluatedModel, judge: Judge, bench: T2ABench, settings: EvaluationSettings
) -> tuple[T2AResult, list[Row]]:
    per_task, config = settings.tasks if model.tasks else 0, model.generator.model.config
    clips_of_tasks = clips_needed(per_task, config.video is not None, settings.mixtures)
    with progress(len(bench.prompts) + clips_of_tasks, model.name, " clips") as bar:
        result = bench.run(model.generator, model.name, model.sampling, bar)
        if not per_task:
            return result, []
        clips = {domain: draw_held_out(config, domain, per_task, settings.seed) for domain in DOMAINS}
        annotate = partial(annotate_waves, judge)
        rows = task_rows(model.generator, annotate, clips, model.sampling, settings.seed, bar, settings.mixtures)
    return result, [{"model": model.name} | row for row in rows]


def _judge_extra(
    models: Sequence[EvaluatedModel], judge: Judge, settings: EvaluationSettings, judge_report: Row, cache: ResultCache
) -> tuple[dict[str, Any], list[SoundComparison]]:
    """T2A-bench with an extra category in every prompt."""
    bench = T2ABench(judge, models[0].generator.codec, settings.prompts, settings.seed, settings.extra)

    def run(model: EvaluatedModel) -> tuple[T2AResult, list[Row]]:
        with progress(len(bench.prompts), f"{model.name}, {settings.extra}", " clips") as bar:
            return bench.run(model.generator, model.name, model.sampling, bar), []

    results = []
    for model in models:
        key = _cache_key(model, settings, judge_report) | {"extra": settings.extra}
        results.append(cache.get(key, partial(run, model))[0])
    report = {
        "category": settings.extra,
        "references": bench.references(),
        "results": [result.row for result in results],
        "differences": [accuracy_differences(results[0], other, settings.seed) for other in results[1:]],
    }
    return report, compare_sounds(bench, results, models[0].generator.sample_rate)


def _cache_key(model: EvaluatedModel, settings: EvaluationSettings, judge_report: Row) -> Row:
    how = {"model": model.to_row(), "digest": model.digest, "dtype": str(model.generator.dtype)}
    return how | {"settings": asdict(replace(settings, latency_steps=None)), "judge": judge_report}


def compare_sounds(
    bench: T2ABench, results: Sequence[T2AResult], sample_rate: int, per_type: int = 2
) -> list[SoundComparison]:
    """The first prompts of every type with the judge's annotation of the true scene and of each model's sound."""
    total = len(bench.prompts) // len(TYPES)
    chosen = [k * total + i for k in range(len(TYPES)) for i in range(min(per_type, total))]
    columns = [("true scene", bench.raw), *((str(result.row["model"]), result.waves) for result in results)]
    annotations = [annotate_waves(bench.judge, waves[chosen]) for _, waves in columns]
    comparisons = []
    for place, index in enumerate(chosen):
        prompt = bench.prompts[index]
        renditions = [
            Rendition(name, waves[index], _describe(of_column[place]), _is_correct(prompt, of_column[place]))
            for (name, waves), of_column in zip(columns, annotations, strict=True)
        ]
        title = f"With a {bench.extra}" if bench.extra else prompt.kind
        comparisons.append(SoundComparison(title, prompt.text, tuple(renditions), sample_rate))
    return comparisons


def _describe(annotation: Annotation) -> str:
    events = [f"{e.category} {e.onset:.1f}–{e.offset:.1f}" for e in annotation.events]
    music = [f"{annotation.instrument} at {annotation.tempo} bpm"] if annotation.instrument else []
    return ", ".join(events + music) or "nothing"


def _is_correct(prompt: BenchmarkPrompt, annotation: Annotation) -> bool:
    """By the metric of the prompt's type."""
    return bool(score_prompts([prompt], [annotation]).by_metric()[TYPES[prompt.kind]][0])


def _timed_models(models: Sequence[EvaluatedModel], settings: EvaluationSettings) -> list[TimedModel]:
    """Every set of weights once with its own sampling, and the first also at the other numbers of steps, fewest
    first."""
    if settings.latency_steps is None:
        return []
    timed: dict[tuple[Generator, int], EvaluatedModel] = {}
    for model in models:  # further samplings of the same weights come later
        if all(generator is not model.generator for generator, _ in timed):
            timed[model.generator, model.sampling.steps] = model
    first = models[0]
    for steps in settings.latency_steps:
        sampling = override_sampling(first.sampling, steps, None)
        timed.setdefault((first.generator, steps), replace(first, sampling=sampling))
    ordered = sorted(timed.values(), key=lambda m: (m.generator is not first.generator, m.sampling.steps))
    return [(m.weights, m.generator, m.sampling) for m in ordered]
