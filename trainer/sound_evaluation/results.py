"""From features to figures: every metric of every folder with its interval, and paired comparisons with the first.

N prompts that are whole in all folders, K classes, E embedding.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.english import complaint_list
from ..media.source import Reason
from ..scorers.pictures import VideoClip
from ..scorers.scorer import EMBEDDING, PROBABILITIES, SCORES, Features, Metric, Scorer
from ..scorers.scoring import Item, ScoredSound
from ..scorers.statistics import (
    RESAMPLES,
    Difference,
    Floats,
    bootstrap_interval,
    frechet_at_infinity,
    frechet_distance,
    inception_score,
    kl_divergences,
    mark_significant,
    metric_interval,
    paired_difference,
    paired_metric_difference,
)
from .folders import EvaluatedPrompt, SoundFolder

ORDER_SEED = 2020  # of the order in which clips fall into the parts of an inception score, as in the field's tools
LENGTHS = (
    0.04  # by which the lengths of a folder may differ from its references' in the median: 44.1 kHz read as 48 is 8 %
)
Row = dict[str, Any]


@dataclass(frozen=True)
class JudgeSettings:
    """`leave_out`: sounds with a problem, in all folders; else they are refused."""

    seed: int = 0
    resamples: int = RESAMPLES  # of metrics that are no means
    leave_out: bool = False
    any_length: bool = False
    at_infinity: bool = False  # FD∞ too

    def __post_init__(self) -> None:
        if self.seed < 0 or self.resamples < 20:
            raise ValueError(f"seed {self.seed} must be at least 0, resamples {self.resamples} at least 20")


@dataclass(frozen=True)
class SystemSounds:
    """The sounds of a folder, or the references, in the prompts' order."""

    name: str
    sounds: list[ScoredSound]


def judge_folders(
    prompts: Sequence[EvaluatedPrompt],
    folders: Sequence[SoundFolder],
    scored: Mapping[Item, ScoredSound],
    scorers: Sequence[Scorer],
    settings: JudgeSettings,
) -> Row:
    """The report but for its head.

    Raises ValueError where sounds have problems and are not to be left out, fewer than two prompts are left, or a
    folder's lengths say that its sample rate is wrong.
    """
    problems = find_problems(prompts, folders, scored, bool(needed_videos(prompts, scorers)))
    kept = [p for p in prompts if not any(p.id == row["id"] for row in problems)]
    if problems and not settings.leave_out:
        lines = [f"{row['sounds']}: {row['id']}: {row['reason']} ({row['detail']})" for row in problems]
        title = f"{len(lines)} sounds cannot be judged; --leave-out leaves their prompts out, in all folders"
        raise ValueError(complaint_list(lines, title))
    if len(kept) < 2:
        raise ValueError(f"{len(kept)} of {len(prompts)} prompts are left; at least 2 are needed")
    references = [scored[p.reference] for p in kept if p.reference]
    systems = [SystemSounds(f.name, [scored[f.sounds[p.id]] for p in kept]) for f in folders]
    if references and not settings.any_length:
        _check_lengths(systems, references)
    judged = [
        (scorer, metric) for scorer in scorers for metric in scorer.metrics if references or not metric.needs_reference
    ]
    if not judged:
        raise ValueError("every metric of these scorers needs references; give `reference` in the lines of the prompts")
    texts = _text_embeddings(kept, scorers)
    videos = [scored[p.video] for p in kept if p.video] if any(scorer.pictures for scorer in scorers) else []
    rows, differences = [], []
    for scorer, metric in judged:
        given = Conditions(texts.get(scorer.name), [_features(v, scorer) for v in videos] if scorer.pictures else [])
        tables = [MetricTable(scorer, metric, s.sounds, references, given) for s in systems]
        if references:
            rows.append(_reference_row(scorer, metric, references, given, settings))
        for system, table in zip(systems, tables, strict=True):
            rows.append({"sounds": system.name} | table.row(settings))
        for system, table in zip(systems[1:], tables[1:], strict=True):
            difference = tables[0].compare(table, settings)
            differences.append(
                {"metric": metric.name, "sounds": system.name, "against": systems[0].name} | vars(difference)
            )
    mark_significant(differences)
    return {
        "prompts": len(prompts),
        "judged": len(kept),
        "left_out": problems,
        "remarks": {s.name: _remarks(kept, s.sounds) for s in [*systems, *_named(references)]},
        "results": [row for row in rows if row],
        "differences": differences,
    }


def needed_videos(prompts: Sequence[EvaluatedPrompt], scorers: Sequence[Scorer]) -> list[VideoClip]:
    """The videos of the prompts, where a scorer sees. Raises ValueError where one does and no prompt has a video."""
    seeing = [scorer.name for scorer in scorers if scorer.pictures]
    videos = [prompt.video for prompt in prompts if prompt.video] if seeing else []
    if seeing and not videos:
        raise ValueError(
            f"scorer {seeing[0]} compares sound with video, and no line of the prompts names a `video`; leave the "
            f"scorer out"
        )
    return videos


def find_problems(
    prompts: Sequence[EvaluatedPrompt],
    folders: Sequence[SoundFolder],
    scored: Mapping[Item, ScoredSound],
    seeing: bool = False,
) -> list[Row]:
    """What is missing or cannot be judged, of folders, references and, where a scorer sees, of videos, by prompt."""
    rows = []
    for folder in folders:
        rows += [_problem(folder.name, key, "missing", "the folder has no such sound") for key in folder.missing]
        for key, path in folder.sounds.items():
            if problem := scored[path].problem:
                rows.append(_problem(folder.name, key, *problem))
    for prompt in prompts:
        if prompt.reference and (problem := scored[prompt.reference].problem):
            rows.append(_problem("reference", prompt.id, *problem))
        if seeing and not prompt.video:
            rows.append(_problem("video", prompt.id, Reason.MISSING, "the prompt names no video"))
        elif seeing and prompt.video and (problem := scored[prompt.video].problem):
            rows.append(_problem("video", prompt.id, *problem))
    return rows


def _problem(sounds: str, key: str, reason: str, detail: str) -> Row:
    return {"sounds": sounds, "id": key, "reason": reason, "detail": detail}


def _check_lengths(systems: Sequence[SystemSounds], references: Sequence[ScoredSound]) -> None:
    for system in systems:
        ratio = float(np.median([_seconds(a) / _seconds(b) for a, b in zip(system.sounds, references, strict=True)]))
        if abs(ratio - 1) > LENGTHS:
            raise ValueError(
                f"{system.name}: its sounds last {ratio:.3f} times as long as their references (median), so a wrong "
                f"sample rate is likely, as after resampling without a new header; --any-length judges them as they are"
            )


def _seconds(sound: ScoredSound) -> float:
    assert sound.facts
    return sound.facts.seconds


def _remarks(prompts: Sequence[EvaluatedPrompt], sounds: Sequence[ScoredSound]) -> dict[str, list[str]]:
    """The ids of sounds that are judged although something is unusual about them."""
    found: dict[str, list[str]] = {}
    for prompt, sound in zip(prompts, sounds, strict=True):
        assert sound.facts
        for remark in sound.facts.remarks():
            found.setdefault(remark, []).append(prompt.id)
    return found


def _named(references: list[ScoredSound]) -> list[SystemSounds]:
    return [SystemSounds("reference", references)] if references else []


def _text_embeddings(prompts: Sequence[EvaluatedPrompt], scorers: Sequence[Scorer]) -> dict[str, Tensor]:
    """(N, E) by scorer. Raises ValueError where a scorer compares with texts and a prompt has none."""
    found = {}
    for scorer in scorers:
        if any(metric.kind == "text" for metric in scorer.metrics):
            if without := [prompt.line for prompt in prompts if not prompt.text]:
                raise ValueError(
                    f"scorer {scorer.name} compares sound with text, and line {without[0]} of the prompts and "
                    f"{len(without) - 1} more have none; leave the scorer out"
                )
            found[scorer.name] = scorer.text_embeddings([prompt.text for prompt in prompts])
    return found


def _reference_row(
    scorer: Scorer,
    metric: Metric,
    references: list[ScoredSound],
    given: "Conditions",
    settings: JudgeSettings,
) -> Row:
    """The true sounds as if they were a system's. Their distance from themselves would be 0; that of one random half
    from the other says what few clips alone make of it."""
    if metric.kind == "kl":
        return {}
    row: Row = {"sounds": "reference"}
    if metric.kind != "frechet":
        return row | MetricTable(scorer, metric, references, references, given).row(settings)
    if len(references) < 4:
        return {}
    order = np.random.default_rng(settings.seed).permutation(len(references))
    first, second = ([references[i] for i in half] for half in np.array_split(order, 2))
    value = MetricTable(scorer, metric, first[: len(second)], second, Conditions()).value()
    return row | {"metric": metric.name, "better": metric.better, "value": value, "halves": len(second)}


@dataclass(frozen=True)
class Conditions:
    """What sounds are compared with beside references, in the prompts' order."""

    texts: Tensor | None = None  # (N, E)
    videos: Sequence[Features] = ()


class MetricTable:
    """A metric of one system: a value per sound, or a function of a set of sounds."""

    def __init__(
        self,
        scorer: Scorer,
        metric: Metric,
        sounds: Sequence[ScoredSound],
        references: Sequence[ScoredSound],
        given: Conditions,
    ) -> None:
        self.metric, self.count = metric, len(sounds)
        if metric.kind == "video":
            self.of_each: Floats | None = scorer.compare_with_video(
                [_features(sound, scorer) for sound in sounds], given.videos
            ).numpy()
            return
        name = {"frechet": EMBEDDING, "text": EMBEDDING, "mean": SCORES}.get(metric.kind, PROBABILITIES)
        self.rows = [_feature(sound, scorer, name) for sound in sounds]
        self.truth = [_feature(sound, scorer, name) for sound in references] if metric.needs_reference else []
        self.of_each = self._of_each(given.texts)

    def _of_each(self, texts: Tensor | None) -> Floats | None:
        """(N,), for a metric that is a mean."""
        metric = self.metric
        if metric.kind == "kl":
            return kl_divergences(torch.stack(self.truth), torch.stack(self.rows), metric.epsilon).numpy()
        if metric.kind == "mean":
            return torch.stack(self.rows)[:, metric.column].double().numpy()
        if metric.kind == "text":
            assert texts is not None
            embeddings = torch.stack([row.mean(dim=0) for row in self.rows])
            return torch.cosine_similarity(embeddings.double(), texts.double(), dim=1).numpy()
        return None

    def value(self) -> float:
        return float(self.of_each.mean()) if self.of_each is not None else self.of_sounds(torch.arange(self.count))

    def of_sounds(self, index: Tensor, rows: Sequence[Tensor] | None = None) -> float:
        """The metric of the sounds at `index` (N,), or of `rows` in their place."""
        rows = rows if rows is not None else [self.rows[i] for i in index.tolist()]
        if self.metric.kind == "frechet":
            return frechet_distance(torch.cat(list(rows)), torch.cat([self.truth[i] for i in index.tolist()]))
        order = np.random.RandomState(ORDER_SEED).permutation(len(rows))
        return inception_score(torch.stack([rows[i] for i in order]), self.metric.parts)

    def row(self, settings: JudgeSettings) -> Row:
        if self.of_each is not None:
            value, (low, high) = self.value(), bootstrap_interval(self.of_each, settings.seed)
        else:
            value, low, high = metric_interval(self.of_sounds, self.count, settings.seed, settings.resamples)
        row = {"metric": self.metric.name, "better": self.metric.better, "value": value, "low": low, "high": high}
        if self.metric.kind == "frechet":
            embeddings, truth = torch.cat(self.rows), torch.cat(self.truth)
            row |= {"rows": len(embeddings), "dimensions": embeddings.shape[1]}
            if settings.at_infinity:
                row["at_infinity"] = frechet_at_infinity(embeddings, truth, settings.seed)
        return row

    def compare(self, other: "MetricTable", settings: JudgeSettings) -> Difference:
        """`other` minus this one, on the same prompts."""
        if self.of_each is not None and other.of_each is not None:
            return paired_difference(self.of_each, other.of_each, settings.seed)

        def of_mixed(index: Tensor, from_other: Tensor) -> float:
            pairs = zip(index.tolist(), from_other.tolist(), strict=True)
            return self.of_sounds(index, [(other.rows if second else self.rows)[i] for i, second in pairs])

        return paired_metric_difference(of_mixed, self.count, settings.seed, settings.resamples)


def _features(sound: ScoredSound, scorer: Scorer) -> Features:
    assert sound.features is not None
    return sound.features[scorer.name]


def _feature(sound: ScoredSound, scorer: Scorer, name: str) -> Tensor:
    return _features(sound, scorer)[name]


def count_reasons(rows: Sequence[Row]) -> dict[str, int]:
    """How many sounds have which problem."""
    return dict(Counter(row["reason"] for row in rows))
