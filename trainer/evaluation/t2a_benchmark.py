"""T2A-bench on the embedded scenes (appendix A-C) with the quality metrics of section VI-B: blind judge, then score.

P prompts, K classes, E embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ...models.audiox import SamplingConfig
from ...models.encoders.base import AudioCodec
from ...models.judge import Judge, JudgeOutput
from ...models.sampler import nfe
from ..generation.request import Request
from ..generation.sampling import SEED_STRIDE, Maker, make, side_by_side, sound
from ..scenes.scene import Scene, audio_scene
from .judge import decode, listen, render, through
from .metrics import (
    Prompt,
    Scores,
    bootstrap_interval,
    chance,
    draw_prompts,
    frechet_distance,
    inception_score,
    kl_divergence,
    paired_ratio,
    score,
)

ACCURACIES = {"cat_acc": "cat", "cnt_acc": "cnt", "ord_acc": "ord", "ts_acc": "ts"}
RESAMPLES = 200  # of the metrics that are no means: each takes a decomposition
AGAIN_SEED = 4_000_037  # apart from all other seeds
Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What one model did on the benchmark: its row, the single judgments and the sounds, in the prompts' order."""

    row: Row
    scores: Scores
    waves: Tensor  # (P, 1, samples)


class T2ABench:
    """Prompts, the true scenes that follow them, and what the judge hears in these."""

    def __init__(self, judge: Judge, codec: AudioCodec, per_type: int, seed: int) -> None:
        """Raises ValueError when there are fewer than one prompt a type."""
        if per_type < 1:
            raise ValueError(f"{per_type} prompts a type; at least 1")
        self.judge, self.codec, self.seed = judge, codec, seed
        self.prompts: list[Prompt] = draw_prompts(per_type, seed)
        self.raw = render([prompt.scene for prompt in self.prompts])
        self.truth = listen(judge, self._coded(self.raw, "true scenes"))

    def run(self, maker: Maker, model: str, sampling: SamplingConfig, bar: tqdm) -> Outcome:
        """Judges a model under `sampling`; `bar` advances by the number of prompts."""
        bar.set_postfix_str("T2A-bench")
        request = Request([prompt.text for prompt in self.prompts])
        latents = make(maker, request, self.seed * SEED_STRIDE, sampling, bar)
        waves = sound(maker, latents)
        output = listen(self.judge, waves)
        scores = score(self.prompts, decode(output, self.judge.config))
        row = {"model": model, "steps": sampling.steps, "nfe": nfe(sampling), "guidance": sampling.guidance}
        row |= {"prompts": len(self.prompts)} | self._accuracies(scores) | self._quality(output)
        row["chance"] = chance(self.prompts, decode(output, self.judge.config), self.seed)
        return Outcome(row, scores, waves)

    def references(self) -> list[Row]:
        """What the true scenes score, as they are and through the codec.

        The latter's FD and KL would be zero by definition; they are those of a second draw of scenes that follow the
        same prompts, which is what a perfect generator makes.
        """
        rng = np.random.default_rng([AGAIN_SEED, self.seed])
        again = render([drawn_again(prompt, rng) for prompt in self.prompts])
        raw = listen(self.judge, self.raw)
        rows = []
        for name, heard, output in (
            ("true scenes", raw, raw),
            ("true scenes through the codec", self.truth, listen(self.judge, self._coded(again, "more true scenes"))),
        ):
            scores = score(self.prompts, decode(heard, self.judge.config))
            rows.append(
                {"model": name, "prompts": len(self.prompts)} | self._accuracies(scores) | self._quality(output)
            )
        return rows

    def _coded(self, waves: Tensor, title: str) -> Tensor:
        chunks = waves.split(50)

        def coded(chunk: Tensor) -> Tensor:
            return through(lambda w: self.codec.decode(self.codec.encode(w)[0]), chunk)

        return torch.cat(list(tqdm(side_by_side(coded, chunks), total=len(chunks), desc=title)))

    def _accuracies(self, scores: Scores) -> Row:
        row: Row = scores.rates()
        for name, attribute in ACCURACIES.items():
            row[f"{name}_low"], row[f"{name}_high"] = bootstrap_interval(getattr(scores, attribute), self.seed)
        return row

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
            row[name], row[f"{name}_low"], row[f"{name}_high"] = spread(metric, len(classes), self.seed)
        return row


def drawn_again(prompt: Prompt, rng: np.random.Generator) -> Scene:
    """Another scene that follows the prompt."""
    if prompt.kind == "timestamp":
        return replace(prompt.scene, seed=int(rng.integers(2**31)))
    return audio_scene([event.category for event in prompt.scene.events], rng)


def differences(first: Outcome, second: Outcome, seed: int) -> Row:
    """Accuracies of the second model minus the first's on the same prompts, and over the first's, with 95 % intervals
    that resample the prompts."""
    row: Row = {"model": second.row["model"], "against": first.row["model"]}
    for field in fields(Scores):
        a, b = (getattr(x.scores, field.name).astype(np.float64) for x in (first, second))
        name = f"{field.name}_acc"
        row[name] = float((b - a).mean())
        row[f"{name}_low"], row[f"{name}_high"] = bootstrap_interval(b - a, seed)
        ratio = f"{name}_ratio"
        row[ratio], row[f"{ratio}_low"], row[f"{ratio}_high"] = paired_ratio(a, b, seed)
    return row


def spread(metric: Callable[[Tensor], float], count: int, seed: int) -> tuple[float, float, float]:
    """A metric of a set of clips, given as indices (P,), with a 95 % interval.

    The interval is the bootstrap's spread, moved so that its middle is the value: resampling repeats clips, which
    raises an FD and would move the whole interval off it. The bias of few clips is not in it.
    """
    value = metric(torch.arange(count))
    rng = np.random.default_rng(seed)
    draws: NDArray[np.float64] = np.array(
        [metric(torch.from_numpy(rng.integers(count, size=count))) for _ in range(RESAMPLES)]
    )
    low, high = np.quantile(draws - np.median(draws), [0.025, 0.975])
    return value, max(0.0, value + float(low)), value + float(high)
