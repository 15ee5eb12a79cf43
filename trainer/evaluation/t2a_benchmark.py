"""T2A-bench on the embedded scenes (appendix A-C) with the quality metrics of section VI-B.

The judge annotates the sounds without knowing the prompts, and the annotations are scored. P prompts, K classes,
E embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...models.audiox import SamplingConfig
from ...models.encoders.base import AudioCodec
from ...models.judge import Judge, JudgeOutput
from ...models.sampler import nfe
from ..generation.batching import SEED_STRIDE, SoundModel, decode_latents, parallel_map, sample_latents
from ..generation.clip_request import ClipRequest
from ..scenes.scene import Scene, audio_scene
from ..scorers.embedded_judge import listen
from ..scorers.statistics import (
    bootstrap_interval,
    frechet_distance,
    inception_score,
    kl_divergence,
    metric_interval,
    paired_ratio,
)
from .annotation import Annotation, decode
from .judge_training import render_scenes, round_trip
from .t2a_prompts import BenchmarkPrompt, Scores, chance, draw_prompts, score_prompts

REDRAW_SEED = 4_000_037  # differs from all other seeds
Row = dict[str, Any]


@dataclass(frozen=True)
class T2AResult:
    """A model's row of the benchmark, the single judgments and the sounds, in the prompts' order."""

    row: Row
    scores: Scores
    waves: Tensor  # (P, 1, samples)


class T2ABench:
    """Prompts, the true scenes that follow them, and the judge's output for these."""

    def __init__(self, judge: Judge, codec: AudioCodec, per_type: int, seed: int, extra: str = "") -> None:
        """With `extra`, one of `EXTRA_CATEGORIES`, every prompt has this category, and rows say how often it is heard.

        Raises ValueError when there is not even one prompt per type.
        """
        if per_type < 1:
            raise ValueError(f"{per_type} prompts per type; at least 1")
        self.judge, self.codec, self.seed, self.extra = judge, codec, seed, extra
        self.prompts = draw_prompts(per_type, seed, extra)
        self.raw = render_scenes([prompt.scene for prompt in self.prompts])
        self.truth = listen(judge, self._coded(self.raw, "true scenes"))

    def run(self, model: SoundModel, name: str, sampling: SamplingConfig, progress: tqdm) -> T2AResult:
        """Judges a model under `sampling`; `progress` advances by the number of prompts."""
        progress.set_postfix_str("T2A-bench")
        request = ClipRequest([prompt.text for prompt in self.prompts])
        waves = decode_latents(model, sample_latents(model, request, self.seed * SEED_STRIDE, sampling, progress))
        output = listen(self.judge, waves)
        annotations = decode(output, self.judge.config)
        scores = score_prompts(self.prompts, annotations)
        row = {"model": name, "steps": sampling.steps, "nfe": nfe(sampling), "guidance": sampling.guidance}
        row |= {"guidance_interval": list(sampling.guidance_interval)}
        row |= self._accuracies(scores) | self._heard(annotations) | self._quality(output)
        return T2AResult(row | {"chance": chance(self.prompts, annotations, self.seed)}, scores, waves)

    def references(self) -> list[Row]:
        """The scores of the true scenes, as they are and through the codec.

        FD and KL of the latter would be zero by definition. They are those of a second draw of scenes that follow the
        same prompts, which is what a perfect generator makes.
        """
        rng = np.random.default_rng([REDRAW_SEED, self.seed])
        redrawn = render_scenes([redraw_scene(prompt, rng) for prompt in self.prompts])
        raw = listen(self.judge, self.raw)
        redrawn_output = listen(self.judge, self._coded(redrawn, "more true scenes"))
        rows = []
        for name, output, quality_of in (
            ("true scenes", raw, raw),
            ("true scenes through the codec", self.truth, redrawn_output),
        ):
            annotations = decode(output, self.judge.config)
            row = self._accuracies(score_prompts(self.prompts, annotations)) | self._heard(annotations)
            rows.append({"model": name} | row | self._quality(quality_of))
        return rows

    def _coded(self, waves: Tensor, title: str) -> Tensor:
        chunks = waves.split(50)
        coded = parallel_map(partial(round_trip, self.codec), chunks)
        return torch.cat(list(tqdm(coded, total=len(chunks), desc=title)))

    def _accuracies(self, scores: Scores) -> Row:
        row: Row = {"prompts": len(self.prompts)} | scores.rates()
        for name, values in scores.by_metric().items():
            row[f"{name}_low"], row[f"{name}_high"] = bootstrap_interval(values, self.seed)
        return row

    def _heard(self, annotations: Sequence[Annotation]) -> Row:
        """In which share of the sounds the extra category is."""
        if not self.extra:
            return {}
        heard = np.array([self.extra in annotation.order for annotation in annotations])
        low, high = bootstrap_interval(heard, self.seed)
        return {"heard": float(heard.mean()), "heard_low": low, "heard_high": high}

    def _quality(self, output: JudgeOutput) -> Row:
        """FD and KL against the true scenes through the codec, prompt by prompt, and IS."""
        classes, true_classes = output.class_probabilities(), self.truth.class_probabilities()
        metrics: dict[str, Callable[[Tensor], float]] = {
            "fd": lambda i: frechet_distance(output.embedding[i], self.truth.embedding[i]),
            "kl": lambda i: kl_divergence(true_classes[i], classes[i]),
            "is": lambda i: inception_score(classes[i]),
        }
        row: Row = {}
        for name, metric in metrics.items():
            row[name], row[f"{name}_low"], row[f"{name}_high"] = metric_interval(metric, len(classes), self.seed)
        return row


def redraw_scene(prompt: BenchmarkPrompt, rng: np.random.Generator) -> Scene:
    """Another scene that follows the prompt."""
    if prompt.kind == "timestamp":
        return replace(prompt.scene, seed=int(rng.integers(2**31)))
    return audio_scene([event.category for event in prompt.scene.events], rng)


def accuracy_differences(first: T2AResult, second: T2AResult, seed: int) -> Row:
    """Accuracies of the second model minus the first's on the same prompts, and over the first's, with 95 % intervals
    that resample the prompts."""
    row: Row = {"model": second.row["model"], "against": first.row["model"]}
    for name, values in second.scores.by_metric().items():
        a, b = first.scores.by_metric()[name].astype(np.float64), values.astype(np.float64)
        row[name] = float((b - a).mean())
        row[f"{name}_low"], row[f"{name}_high"] = bootstrap_interval(b - a, seed)
        ratio = f"{name}_ratio"
        row[ratio], row[f"{ratio}_low"], row[f"{ratio}_high"] = paired_ratio(a, b, seed)
    return row
