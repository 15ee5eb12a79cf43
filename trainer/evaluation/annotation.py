"""The judge's output as annotations: events, instrument and tempo of a clip.

B batch, T frames, K categories.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...models.judge import Judge, JudgeConfig, JudgeOutput
from ..scenes.scene import SoundEvent
from ..scorers.embedded_judge import listen

ON, OFF = 0.5, 0.35  # an event needs a frame above the first probability, and lasts while it is above the second
MIN_FRAMES = 4  # a shorter activity is not an event
MIN_BETWEEN = 9  # frames between two onsets of a category: the shortest event and its pause last 14


@dataclass(frozen=True)
class Annotation:
    """The events of a clip in order of their onsets (seconds), its instrument and tempo; "" and 0 without music."""

    events: tuple[SoundEvent, ...]
    instrument: str
    tempo: int

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(event.category for event in self.events)

    @property
    def counts(self) -> dict[str, int]:
        return {name: self.order.count(name) for name in self.order}


def annotate_waves(judge: Judge, waves: Tensor) -> list[Annotation]:
    """Annotations of waves (B, 1, samples)."""
    return decode(listen(judge, waves), judge.config)


def decode(output: JudgeOutput, config: JudgeConfig) -> list[Annotation]:
    """Logits to events, instrument and tempo."""
    activity = output.activity.sigmoid().numpy()
    onset = output.onset.sigmoid().numpy()
    names = len(config.categories)
    result = []
    for b in range(activity.shape[0]):
        events = [
            SoundEvent(category, start * config.frame_seconds, stop * config.frame_seconds)
            for k, category in enumerate(config.categories)
            for start, stop in _segments(activity[b, :, k], onset[b, :, k])
        ]
        instruments = output.presence[b, names:]
        music = bool(instruments.max() > 0)
        result.append(
            Annotation(
                events=tuple(sorted(events, key=lambda event: event.onset)),
                instrument=config.instruments[int(instruments.argmax())] if music else "",
                tempo=config.tempi[int(output.tempo[b].argmax())] if music else 0,
            )
        )
    return result


def _segments(activity: NDArray[np.float32], onset: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Probabilities (T,) -> [start, stop) in frames of each event of one category.

    An event begins where activity rises, or at a peak of onset within activity, which separates repetitions. It ends
    where activity falls or the next event begins.
    """
    if activity.max() <= ON:
        return []
    active = activity > OFF
    edges = np.flatnonzero(np.diff(np.concatenate(([False], active, [False])))).reshape(-1, 2)
    result: list[tuple[int, int]] = []
    for begin, end in edges.tolist():
        if activity[begin:end].max() <= ON:
            continue
        starts = [begin]
        for frame in range(begin + MIN_BETWEEN, end - 1):
            peak = onset[frame] > ON and onset[frame] == onset[frame - 2 : frame + 3].max()
            if peak and frame - starts[-1] >= MIN_BETWEEN:
                starts.append(frame)
        result += [(a, b) for a, b in zip(starts, [*starts[1:], end], strict=True) if b - a >= MIN_FRAMES]
    return result
