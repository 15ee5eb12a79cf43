"""The interface of a scorer, a frozen network that hears a sound. It gives features; a metric is a statistic of them.

    embedding      (windows, E), one row for every window that the network takes of a sound
    probabilities  (K,), a distribution over classes
    scores         (S,), numbers of the sound itself

A scorer that also sees has features of pictures, apart from those of sounds, so that a video is seen once for any
number of sounds. It compares the two.

n samples, B sounds, N pairs of a sound and a video.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..media.audio_decode import Wave
from .pictures import PictureFormat

Features = dict[str, Tensor]  # of one sound or video, float32 on the CPU
EMBEDDING, PROBABILITIES, SCORES = "embedding", "probabilities", "scores"


@dataclass(frozen=True)
class Metric:
    """A statistic of a feature, of all sounds or of each.

    frechet: of the embeddings against those of the references. kl: of each sound's probabilities from its reference's.
    inception: of the probabilities alone. mean: of column `column` of the scores. text: cosine of the embedding and
    that of the prompt's text. video: what `compare_with_video` gives for each sound and its prompt's video.
    """

    name: str  # of a table's column
    kind: Literal["frechet", "kl", "inception", "mean", "text", "video"]
    better: Literal["higher", "lower"]
    definition: str
    column: int = 0
    parts: int = 1  # of an inception score
    epsilon: float = 0.0  # added to the generated probabilities of a KL divergence

    @property
    def needs_reference(self) -> bool:
        return self.kind in ("frechet", "kl")


class Scorer(ABC):
    """A network with its front end. `digest` follows from the weights and from all else that decides the features.
    `pictures` is what it needs of a video, None for one that only hears."""

    pictures: PictureFormat | None = None

    def __init__(
        self, name: str, rate: int, shortest: float, metrics: Sequence[Metric], digest: str, about: dict[str, str]
    ) -> None:
        self.name, self.rate, self.metrics, self.digest = name, rate, tuple(metrics), digest
        self.shortest = shortest  # seconds of a sound
        self.about = about  # for a report: the file, its hash, its licence

    @abstractmethod
    def features(self, waves: Sequence[Wave]) -> list[Features]:
        """Of sounds (n,) at the scorer's rate, each of its own length."""

    def class_probabilities(self, waves: Sequence[Wave]) -> list[Tensor]:
        """(K,) of each sound: how probable it is that a class sounds, for a scorer with probabilities."""
        return [row[PROBABILITIES] for row in self.features(waves)]

    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        """(N, E), for a scorer with a metric of kind "text"."""
        raise AssertionError(f"{self.name} reads no text")

    def picture_features(self, videos: Sequence[Tensor]) -> list[Features]:
        """Of pictures in the format `pictures`, uint8, for a scorer with a metric of kind "video"."""
        raise AssertionError(f"{self.name} sees nothing")

    def compare_with_video(self, sounds: Sequence[Features], videos: Sequence[Features]) -> Tensor:
        """(N,), a number for each sound with its video, from the features of both: the cosine of their embeddings."""
        heard, seen = (torch.stack([row[EMBEDDING].mean(dim=0) for row in rows]) for rows in (sounds, videos))
        return torch.cosine_similarity(heard.double(), seen.double(), dim=1)


def in_batches(waves: Sequence[Wave], batch: int, run: Callable[[Tensor], list[Features]]) -> list[Features]:
    """`run` on batches (B, n) of sounds with the same length; its features in the order of the sounds."""
    found: dict[int, Features] = {}
    order = sorted(range(len(waves)), key=lambda i: waves[i].size)
    while order:
        chunk = [i for i in order[:batch] if waves[i].size == waves[order[0]].size]
        found |= zip(chunk, run(torch.from_numpy(np.stack([waves[i] for i in chunk]))), strict=True)
        order = order[len(chunk) :]
    return [found[i] for i in range(len(waves))]


def whole_windows(wave: Wave, samples: int) -> list[Wave]:
    """Consecutive windows of a sound (n,), without a remainder; a shorter sound is one window with silence after it."""
    if wave.size < samples:
        return [np.pad(wave, (0, samples - wave.size))]
    return [wave[i : i + samples] for i in range(0, wave.size - samples + 1, samples)]


def row_features(**rows: Tensor) -> list[Features]:
    """Tensors with one row per sound -> the features of each sound."""
    cpu = {name: values.float().cpu() for name, values in rows.items()}
    return [{name: values[i].clone() for name, values in cpu.items()} for i in range(len(next(iter(cpu.values()))))]
