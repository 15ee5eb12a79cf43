"""Let networks judge a line: the scorers of an evaluation, each of which gives it one number.

The sound is decoded once more, at the highest rate that a scorer needs, for lines that all other filters have kept.

K classes, E embedding.
"""

import os
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TypeVar

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.encoders.runtime import Runtime
from ..core.english import join
from ..manifest.manifest import ManifestEntry
from ..media.audio_decode import Wave
from ..media.source import MediaError, Reason, open_media
from ..media.video_decode import video_span
from ..scorers.build import build_scorer
from ..scorers.config import ScorerConfig
from ..scorers.pictures import PictureFormat, pictures_of
from ..scorers.scorer import EMBEDDING, SCORES, Features, Metric, Scorer, whole_windows
from ..workers.effort import on_device
from .filter_config import LineFilters, ScorerFilter
from .measure import whole_sound

T = TypeVar("T")
OF_A_LINE = ("mean", "text", "video")  # kinds of metrics that one line has; the others are of many


@cache
def scorer_of(config: ScorerConfig, device: str) -> Scorer:
    """The scorer of this process. Raises ValueError as `build_scorer`."""
    return build_scorer(config, Runtime.for_device(device_of(device)))


def device_of(name: str) -> torch.device:
    """The device of this process: the named one, else a GPU of the machine, all of which are shared out, or the CPU."""
    if name or not torch.cuda.is_available():
        return torch.device(name or "cpu")
    return torch.device("cuda", os.getpid() % torch.cuda.device_count())


def check_scorers(filters: LineFilters, device: str) -> dict[str, str]:
    """Load every scorer and try it on a second or more of noise. Returns digests of all that decides their numbers.

    Raises ValueError where a file is missing, with how to get it, or a network is not as declared.
    """
    digests = {}
    for wanted in filters.scorers:
        scorer = scorer_of(wanted.scorer, device)
        if wanted.classes and wanted.seconds < scorer.shortest:
            raise ValueError(f"{wanted.name}: seconds {wanted.seconds:g}; its network needs {scorer.shortest:g}")
        samples = int(max(1.0, wanted.seconds, scorer.shortest) * scorer.rate) + 1
        noise = 0.1 * np.random.default_rng(0).standard_normal(samples).astype(np.float32)
        line = _ScoredLine(None, ["a sound"], {scorer.rate: noise})
        if form := scorer.pictures:
            crops = (form.crops,) if form.crops > 1 else ()
            count = max(2, int(form.shortest * form.rate + 1e-6))
            line.shown[form] = torch.zeros(count, *crops, 3, form.size, form.size, dtype=torch.uint8)
        line.number(wanted, scorer)
        digests[wanted.name] = scorer.digest
    scorer_of.cache_clear()  # the processes that decode load their own
    return digests


def score_line(entry: ManifestEntry, filters: LineFilters, device: str) -> Generator[None, None, dict[str, float]]:
    """Yields now and then, because networks take long, and returns the numbers of those that judge this line.

    Raises MediaError where the media are damaged or of a length that the networks do not take, ValueError where one of
    these refuses them, OSError where the machine lacks a network or the memory for it.
    """
    with machine_faults():
        return (yield from _score_line(entry, filters, device))


@contextmanager
def machine_faults() -> Iterator[None]:
    """Of a full or broken GPU, an OSError, which stops the stage and leaves no line out."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        detail = "give fewer --workers, each of which has its own networks"
        raise OSError(f"{socket.gethostname()}: {error}; {detail}") from error
    except torch.AcceleratorError as error:  # every later call of this process would fail
        raise OSError(f"{socket.gethostname()}: the GPU failed: {error}") from error


def loaded(load: Callable[[], T]) -> T:
    """The network that was there when the stage began. Raises OSError where it is not on this machine."""
    try:
        return load()
    except ValueError as error:
        raise OSError(f"{socket.gethostname()}: {error}") from error


def _score_line(entry: ManifestEntry, filters: LineFilters, device: str) -> Generator[None, None, dict[str, float]]:
    torch.set_num_threads(1)  # there is a process per core, and sums must not depend on their number
    texts = [*entry.captions, *filter(None, [entry.annotation.get("caption")])]
    judges = []
    for wanted in filters.scorers:
        if entry.domain in wanted.domains:
            scorer = loaded(partial(scorer_of, wanted.scorer, device))
            kind = "" if wanted.classes else metric_of(wanted, scorer).kind
            if (kind != "text" or texts) and (kind != "video" or entry.video):
                judges.append((wanted, scorer))
            yield
    if not judges:
        return {}
    rate = max(scorer.rate for _, scorer in judges)
    line = _ScoredLine(entry, texts, {rate: whole_sound(entry, rate, slack=filters.max_missing_sound)[0]})
    found = dict[str, float]()
    for wanted, scorer in judges:
        yield
        with on_device(str(device_of(device))):
            number = line.number(wanted, scorer)
        found |= {} if number is None else {wanted.name: number}
    return found


def metric_of(wanted: ScorerFilter, scorer: Scorer) -> Metric:
    """Raises ValueError where a scorer does not give the number that is asked for."""
    possible = {metric.name: metric for metric in scorer.metrics if metric.kind in OF_A_LINE}
    chosen = wanted.metric or (next(iter(possible)) if len(possible) == 1 else "")
    if chosen not in possible:
        gives = f"gives {join(list(possible))}" if possible else "gives a line none; give classes, of its probabilities"
        raise ValueError(f"{wanted.name}: metric {wanted.metric!r}; its scorer {gives}")
    return possible[chosen]


@dataclass
class _ScoredLine:
    """A line as networks take it; what they take and give is kept for the next one."""

    entry: ManifestEntry | None  # None: all is there already
    texts: list[str]
    waves: dict[int, Wave]  # (n,) by rate
    shown: dict[PictureFormat, Tensor | None] = field(default_factory=dict)
    heard: dict[str, Features] = field(default_factory=dict)  # by the scorer's digest
    classes: dict[tuple[str, float], Tensor] = field(default_factory=dict)  # (segments, K), by digest and length

    def number(self, wanted: ScorerFilter, scorer: Scorer) -> float | None:
        """None if the line has nothing that this scorer judges. Raises MediaError and ValueError as `score_line`."""
        if wanted.classes:
            return self._share(wanted, scorer)
        metric = metric_of(wanted, scorer)
        if metric.kind == "video":
            assert scorer.pictures is not None
            pictures = self._pictures(scorer.pictures)
            if pictures is None:
                return None
            seen = scorer.picture_features([pictures])
            return float(scorer.compare_with_video([self._features(scorer)], seen)[0])
        features = self._features(scorer)
        if metric.kind == "mean":
            return float(features[SCORES][metric.column])
        texts = F.normalize(scorer.text_embeddings(self.texts))  # (texts, E)
        return float((texts @ F.normalize(features[EMBEDDING].mean(dim=0), dim=0)).mean())

    def _share(self, wanted: ScorerFilter, scorer: Scorer) -> float:
        """Of the segments, in which one of the classes sounds."""
        key = scorer.digest, wanted.seconds
        if key not in self.classes:
            if not any(metric.kind in ("kl", "inception") for metric in scorer.metrics):
                raise ValueError(f"{wanted.name}: classes; its scorer gives no probabilities, leave them out")
            windows = whole_windows(self._wave(scorer.rate), round(wanted.seconds * scorer.rate))
            self.classes[key] = torch.stack(scorer.class_probabilities(windows))
        table = self.classes[key]
        if max(wanted.classes) >= table.shape[1]:
            raise ValueError(f"{wanted.name}: classes {list(wanted.classes)}; its scorer has 0 to {table.shape[1] - 1}")
        return float((table[:, list(wanted.classes)].amax(dim=1) >= wanted.above).double().mean())

    def _features(self, scorer: Scorer) -> Features:
        if scorer.digest not in self.heard:
            wave = self._wave(scorer.rate)
            if wave.size < scorer.shortest * scorer.rate:
                seconds = f"{wave.size / scorer.rate:.2f} s of sound"
                raise MediaError(Reason.TOO_SHORT, f"{seconds}, and {scorer.name} needs {scorer.shortest:g} s")
            self.heard[scorer.digest] = scorer.features([wave])[0]
        return self.heard[scorer.digest]

    def _wave(self, rate: int) -> Wave:
        if rate not in self.waves:
            highest = max(self.waves)
            self.waves[rate] = soxr.resample(self.waves[highest], highest, rate)
        return self.waves[rate]

    def _pictures(self, form: PictureFormat) -> Tensor | None:
        """None of a still picture, for a scorer that needs a moving one."""
        if form not in self.shown:
            entry = self.entry
            assert entry is not None and entry.video is not None
            with open_media(entry.video, entry.allow_private) as source:
                still = video_span(source).count == 1  # it stands for every moment
                start = 0.0 if still else entry.start
                length = None if still or entry.end is None else entry.end - entry.start
                missing = still and form.shortest > 0
                self.shown[form] = None if missing else pictures_of(source, start, length, [form])[form]
        return self.shown[form]
