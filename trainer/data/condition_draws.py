"""Draw which task a sample serves, and what of its conditions it is given (section IV-B, Tables A.6 and A.7).

A task's mixture is drawn last, so that it changes no other draw.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from ..core.tasks import TASKS
from .record import Record


@dataclass(frozen=True)
class SampleConditions:
    """The conditions that were drawn for a sample."""

    task: str
    text: str
    video: bool
    given_mask: Tensor  # (L,), 1 where the latents are a condition
    null: bool = False  # dropped as a whole
    preceding: bool = False  # what precedes the clip is the condition, and none of its own latents


def choose_task(record: Record, weights: dict[str, float], rng: np.random.Generator) -> str:
    """Draw one of the stream's tasks that the record can serve, by weight."""
    names, bounds = _usable_tasks(tuple(weights.items()), bool(record.captions), len(record.motion) > 0)
    if not names:
        raise ValueError(
            f"sample {record.id!r} serves none of the tasks {', '.join(weights)}: no video, or no caption whose weight "
            f"is above 0; give its stream a task that needs neither, or other weights (data.streams.*.captions)"
        )
    return names[bisect_right(bounds, rng.random())]


@lru_cache(maxsize=1024)
def _usable_tasks(weights: tuple[tuple[str, float], ...], text: bool, video: bool) -> tuple[list[str], list[float]]:
    """The tasks that a record with or without text and video can serve, and where the share of each ends in [0, 1]."""
    usable = {task: weight for task, weight in weights if _can_serve(text, video, task)}
    ends = np.cumsum(np.array(list(usable.values())) / (sum(usable.values()) or 1))
    return list(usable), (ends / ends[-1:]).tolist()


def can_serve(record: Record, task: str) -> bool:
    """Whether the record has the text and the video that the task conditions on."""
    return _can_serve(bool(record.captions), len(record.motion) > 0, task)


def _can_serve(text: bool, video: bool, task: str) -> bool:
    return (text or not TASKS[task].text) and (video or not TASKS[task].video)


def choose_text(record: Record, task: str, rng: np.random.Generator) -> str:
    """Draw one of the captions, or take the task's default text if it has no text of its own (section IV-B).

    Where the task's mixture has texts, a share of the samples gets a caption.
    """
    ends = record.caption_ends
    pick = bisect_right(ends, rng.random()) if ends else int(rng.integers(max(1, len(record.captions))))
    described = bool(rng.random() < TASKS[task].mixture.text)
    default = TASKS[task].default_text
    if default is None or (described and record.captions):
        return record.captions[pick]
    return default


def choose_mixture(record: Record, task: str, rng: np.random.Generator) -> tuple[bool, bool]:
    """Draw whether the sample gets its video, and what precedes its clip."""
    mixture = TASKS[task].mixture
    video, preceding = rng.random(2) < (mixture.video, mixture.preceding)
    return len(record.motion) > 0 and (TASKS[task].video or bool(video)), len(record.preceding) > 0 and bool(preceding)
