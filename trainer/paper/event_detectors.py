"""Who hears events for STEAM: a network with a probability per frame and label, the judge of the scenes, or a file of
events that another program found.

    {"file": "sed.onnx", "rate": 32000, "frame_seconds": 0.01, "labels": "labels.txt", "threshold": 0.5}
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...models import strict
from ...models.encoders.runtime import Runtime
from ...models.exported_network import load_network
from ..core.config_reader import read_json
from ..core.english import join
from ..evaluation.annotation import annotate_waves
from ..media.source import MediaError, Reason
from ..scorers.embedded_judge import JUDGE_CONFIG, load_judge
from ..scorers.sound_file import read_sound
from ..sets.published_lists import span

Spans = list[tuple[float, float]]
Detector = Callable[[Path, str, Sequence[str]], dict[str, Spans]]  # of a sound with an id, for events by name


@dataclass(frozen=True)
class DetectorConfig:
    """A network in TorchScript, or in ONNX if its file ends in .onnx: one channel (1, n) float32 -> probabilities
    (1, frames, labels). `labels` is a file with a name per line. An event is above `threshold`; pauses below `gap` and
    events below `shortest` seconds do not count."""

    file: str
    rate: strict.Positive  # Hz
    frame_seconds: strict.PositiveFloat
    labels: str
    threshold: strict.Share = 0.5
    gap: strict.NonNegativeFloat = 0.1
    shortest: strict.NonNegativeFloat = 0.1


def read_detector(path: Path) -> DetectorConfig:
    """Relative paths start from the file's folder. Raises ValueError where a file is missing or a key is wrong."""
    try:
        config = strict.parse(DetectorConfig, read_json(path))
        for name in ("file", "labels"):
            if not (path.parent / getattr(config, name)).is_file():
                raise ValueError(f"{name}: {path.parent / getattr(config, name)} is missing; give a file")
    except OSError as error:
        raise ValueError(f"{path}: {str(error.strerror).lower()}; give the file that describes a network") from None
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    return replace(config, file=str(path.parent / config.file), labels=str(path.parent / config.labels))


def network_detector(config: DetectorConfig, device: torch.device) -> Detector:
    """Raises ValueError where the network cannot be loaded, and when it is asked for an event that it has no label
    for, or gives other shapes than it should."""
    run = load_network(config.file, device)
    labels = {name.strip().lower(): i for i, name in enumerate(Path(config.labels).read_text().splitlines())}

    def detect(path: Path, name: str, events: Sequence[str]) -> dict[str, Spans]:
        if unknown := [event for event in events if event.lower() not in labels]:
            raise ValueError(f"{config.labels}: no label is called {unknown[0]!r}, which {name} asks for")
        wave = _wave(path, config.rate)
        if wave is None:
            return {event: [] for event in events}
        found: Tensor = run(torch.from_numpy(np.ascontiguousarray(wave, np.float32))[None])
        if found.ndim != 3 or found.shape[0] != 1 or found.shape[2] != len(labels):
            raise ValueError(f"{config.file} gives {tuple(found.shape)}, not (1, frames, {len(labels)}) probabilities")
        probabilities = found[0].numpy()
        return {event: active_spans(probabilities[:, labels[event.lower()]], config) for event in events}

    return detect


def active_spans(probabilities: NDArray[np.floating], config: DetectorConfig) -> Spans:
    """Probabilities (frames,) -> seconds of each time above the threshold."""
    active = np.concatenate(([False], probabilities > config.threshold, [False]))
    spans: Spans = []
    for begin, end in np.flatnonzero(np.diff(active)).reshape(-1, 2).tolist():
        start, stop = begin * config.frame_seconds, end * config.frame_seconds
        if spans and start - spans[-1][1] < config.gap:
            start = spans.pop()[0]
        spans.append((start, stop))
    return [(start, stop) for start, stop in spans if stop - start >= config.shortest]


def judge_detector(folder: Path) -> Detector:
    """The judge of the scenes. Raises ValueError where the folder has none, and for sounds of another rate."""
    if not (folder / JUDGE_CONFIG).is_file():
        raise ValueError(
            f"{folder / JUDGE_CONFIG} is missing; `launch/evaluate.py --judge {folder}` trains a judge there"
        )
    judge = Runtime.for_device(torch.device("cpu")).frozen(load_judge(folder))
    rate = judge.config.sample_rate

    def detect(path: Path, name: str, events: Sequence[str]) -> dict[str, Spans]:
        if unknown := [event for event in events if event not in judge.config.categories]:
            raise ValueError(f"the judge knows {join(judge.config.categories)}, and {name} asks for {unknown[0]!r}")
        wave = _wave(path, rate)
        if wave is None:
            return {event: [] for event in events}
        (heard,) = annotate_waves(judge, torch.from_numpy(np.ascontiguousarray(wave, np.float32))[None, None])
        return {event: [(e.onset, e.offset) for e in heard.events if e.category == event] for event in events}

    return detect


def file_detector(name: str) -> Detector:
    """Events from a file of this name in the folder of the sounds: {"id": …, "events": [{"event", "start", "end"}]} per
    line. Raises ValueError where it is missing, a line is wrong, or a sound has none."""
    read: dict[Path, dict[str, dict[str, Spans]]] = {}

    def detect(path: Path, sound: str, events: Sequence[str]) -> dict[str, Spans]:
        file = next((folder / name for folder in path.parents if (folder / name).is_file()), path.parent / name)
        if file not in read:
            read[file] = _read_events(file)
        if sound not in read[file]:
            raise ValueError(f"{file}: no line has the id {sound!r}; give one with no events if nothing was heard")
        return {event: read[file][sound].get(_plain(event), []) for event in events}

    return detect


def _wave(path: Path, rate: int) -> NDArray[np.float32] | None:
    """One channel (n,); None for silence, in which nothing is heard. Raises MediaError for a file that is damaged."""
    try:
        return read_sound(path, {rate}, 0.0, 0.0).waves[rate]
    except MediaError as error:
        if error.reason is not Reason.SILENT:
            raise
        return None


def _plain(event: str) -> str:
    return event.strip().lower()


def _read_events(path: Path) -> dict[str, dict[str, Spans]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"{path}: {str(error.strerror).lower()}; give the events of these sounds") from None
    found: dict[str, dict[str, Spans]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                row = strict.parse_json(line.decode("utf-8-sig"))
                spans = found.setdefault(row["id"], {})
                for event in row["events"]:
                    spans.setdefault(_plain(str(event["event"])), []).append(span(event["start"], event["end"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: no id with events as they should be ({error})") from None
    return found
