"""AudioTime's test on folders of sounds: four measures with intervals, and paired differences."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ...models import strict
from ..core.english import amount, complaint_list
from ..media.source import MediaError
from ..scorers.statistics import (
    RESAMPLES,
    Floats,
    bootstrap_interval,
    mark_significant,
    metric_interval,
    paired_difference,
    paired_metric_difference,
)
from ..sets.published_lists import STEAM_KINDS, seconds, span, steam_caption, steam_kind
from ..sound_evaluation.folders import EvaluatedPrompt, SoundFolder
from .event_detectors import Detector
from .steam_metrics import AskedEvents, as_counts, duration_errors, frequency_errors, ordering_error, segment_counts
from .steam_metrics import segment_f1 as f1

METRICS = {  # by kind: name, what is better, words
    "ordering": ("Ordering", "lower", "error rate"),
    "duration": ("Duration", "lower", "seconds per event"),
    "frequency": ("Frequency", "lower", "times per event"),
    "timestamp": ("Timestamp", "higher", "F1 of segments of 1 s"),
}
Row = dict[str, Any]


@dataclass(frozen=True)
class SteamClip:
    """A caption of AudioTime: its id is KIND_NAME, as launch/testset.py names its sound."""

    id: str
    text: str
    asked: AskedEvents


def read_steam_lists(paths: Sequence[Path]) -> list[SteamClip]:
    """Captions as AudioTime publishes them, one file per kind.

    Raises ValueError where a file is missing, its name does not say its kind, or a caption asks for no such events.
    """
    clips: list[SteamClip] = []
    for path in paths:
        try:
            clips += _read_list(path)
        except OSError as error:
            raise ValueError(f"{path}: {str(error.strerror).lower()}; give the lists of AudioTime") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: no list of AudioTime as it was published: {error}") from None
    if not clips:
        raise ValueError("the lists of AudioTime have no caption")
    if len({clip.id for clip in clips}) < len(clips):
        raise ValueError("two lists of AudioTime are of the same kind; give each once")
    return clips


def _read_list(path: Path) -> Iterator[SteamClip]:
    kind = steam_kind(path)
    for name, clip in strict.parse_json(path.read_bytes()).items():
        value: dict[str, float] = {}
        spans: dict[str, list[tuple[float, float]]] = {}
        for event, found in clip["event"].items():
            if not found or (kind == "duration" and len(found) != 1):
                raise ValueError(f"{name}: {event!r} has {amount(len(found), 'value')}")
            if kind in ("ordering", "timestamp"):
                spans[event] = [span(*pair) for pair in found]
            else:
                value[event] = seconds(found[0]) if kind == "duration" else float(len(found))
        if kind == "ordering" and len(spans) != 2:
            raise ValueError(f"{name}: {amount(len(spans), 'event')} to order; expected two")
        if not value and not spans:
            raise ValueError(f"{name}: asks for no event")
        yield SteamClip(f"{kind}_{name}", steam_caption(clip), AskedEvents(kind, value, dict(spans)))


def steam_prompts(clips: Sequence[SteamClip]) -> list[EvaluatedPrompt]:
    """As folders of sounds are matched with them."""
    return [EvaluatedPrompt(clip.id, clip.text, None, line) for line, clip in enumerate(clips, start=1)]


def judge_steam(
    clips: Sequence[SteamClip], folders: Sequence[SoundFolder], detector: Detector, seed: int, leave_out: bool
) -> Row:
    """The report. A clip whose sound is missing or cannot be decoded in any folder is left out of all of them with
    `leave_out`.

    Raises ValueError where there are such and they are not to be left out, none is left, or the detector refuses.
    """
    heard: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    problems: list[Row] = []
    for folder in folders:
        for clip in tqdm(clips, desc=folder.name, unit=" sounds", disable=None):
            path = folder.sounds.get(clip.id)
            try:
                if path:
                    heard[folder.name, clip.id] = detector(path, clip.id, clip.asked.names)
                else:
                    problems.append({"sounds": folder.name, "id": clip.id, "reason": "missing"})
            except MediaError as error:
                problems.append({"sounds": folder.name, "id": clip.id, "reason": f"{error.reason}: {error}"})
    if problems and not leave_out:
        lines = [f"{row['sounds']}: {row['id']}: {row['reason']}" for row in problems]
        title = f"{amount(len(lines), 'sound')} cannot be judged; --leave-out leaves them out, in all folders"
        raise ValueError(complaint_list(lines, title))
    lost = {row["id"] for row in problems}
    kept = [clip for clip in clips if clip.id not in lost]
    if not kept:
        raise ValueError(f"none of {amount(len(clips), 'caption')} is left to judge")
    results: list[Row] = []
    differences: list[Row] = []
    for kind in STEAM_KINDS:
        of_kind = [clip for clip in kept if clip.asked.kind == kind]
        if of_kind:
            values = {f.name: _values(kind, of_kind, [heard[f.name, clip.id] for clip in of_kind]) for f in folders}
            results += _results(kind, values, seed)
            differences += _differences(kind, values, seed)
    mark_significant(differences)
    about = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "folders": {f.name: f.name for f in folders}}
    counts = {"prompts": len(clips), "judged": len(kept), "left_out": problems}
    return about | counts | {"results": results, "differences": differences}


def _values(kind: str, clips: Sequence[SteamClip], heard: Sequence[dict[str, list[tuple[float, float]]]]) -> Floats:
    """(clips,) errors for ordering, (events,) for duration and frequency, (clips, 3) counts for timestamps."""
    pairs = list(zip([clip.asked for clip in clips], heard, strict=True))
    if kind == "ordering":
        return np.array([ordering_error(*pair) for pair in pairs])
    if kind == "timestamp":
        return as_counts([segment_counts(*pair) for pair in pairs])
    errors: Callable[..., list[float]] = duration_errors if kind == "duration" else frequency_errors
    return np.array([error for pair in pairs for error in errors(*pair)])


def _results(kind: str, values: dict[str, Floats], seed: int) -> Iterator[Row]:
    metric, better, words = METRICS[kind]
    for name, each in values.items():
        if kind == "timestamp":
            value, low, high = metric_interval(partial(f1, each), len(each), seed)
            high = min(1.0, high)
        else:
            value, (low, high) = float(each.mean()), bootstrap_interval(each, seed)
        row: Row = {"sounds": name, "metric": metric, "better": better, "value": value, "low": low, "high": high}
        yield row | {"definition": words, "values": len(each)}


def _differences(kind: str, values: dict[str, Floats], seed: int) -> Iterator[Row]:
    """Of each further folder from the first."""
    first, *others = values
    for name in others:
        if kind == "timestamp":
            difference = _f1_difference(values[first], values[name], seed)
        else:
            difference = paired_difference(values[first], values[name], seed)
        yield {"metric": METRICS[kind][0], "sounds": name, "against": first} | vars(difference)


def _f1_difference(first: Floats, second: Floats, seed: int) -> Any:
    def of_mixed(index: Tensor, from_second: Tensor) -> float:
        rows = np.where(from_second.numpy()[:, None], second[index.numpy()], first[index.numpy()])
        return f1(rows)

    return paired_metric_difference(of_mixed, len(first), seed, RESAMPLES)
