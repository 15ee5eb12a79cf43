"""The eight tasks on unseen scenes: does the sound follow its own condition better than it follows another's?

B clips, L latent frames, C latent channels.

Every row holds the metric of the sounds (`value`, with the 95 % interval `low` to `high`), the same with conditions
that are not theirs (`control`), the lead over the control (`lead`, and its lower bound `lead_low`: in every row, above
0 where the condition is followed), and the score of the true scenes through the codec (`ceiling`).
"""

from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ...models.audiox import SamplingConfig
from ..core.tasks import TASKS
from ..generation.request import Request
from ..generation.sampling import SEED_STRIDE, Maker, make, sound
from ..scenes.scene import Event, Scene
from .held_out import Unseen
from .judge import Annotation
from .metrics import TOLERANCE, bootstrap_interval

Hear = Callable[[Tensor], list[Annotation]]  # waves (B, 1, samples) -> what is heard in each
Metric = Callable[[Annotation, Scene], float]  # what a sound scores against a scene, 0 to 1
Floats = NDArray[np.float64]
Row = dict[str, Any]

MUSIC = frozenset({"T2M", "V2M", "TV2M", "completion"})
NOISE_STRIDE = SEED_STRIDE // 10  # between the noise seeds of two tasks


def named(heard: Annotation, scene: Scene) -> float:
    """Whether every category of the scene was heard."""
    return float({event.category for event in scene.events} <= set(heard.order))


def in_place(heard: Annotation, scene: Scene) -> float:
    """F1 of the events heard against the scene's: the same category, onsets within the tolerance, one to one."""
    categories = {event.category for event in (*heard.events, *scene.events)}
    matches = sum(matched(*(_onsets(x.events, {category}) for x in (heard, scene))) for category in categories)
    return _f1(matches, len(heard.events) + len(scene.events))


def on_time(heard: Annotation, scene: Scene) -> float:
    """F1 of the onsets alone, whatever sounds."""
    return _f1(matched(_onsets(heard.events), _onsets(scene.events)), len(heard.events) + len(scene.events))


def same_music(heard: Annotation, scene: Scene) -> float:
    """Whether instrument and tempo are both right."""
    return float((heard.instrument, heard.tempo) == (scene.instrument, scene.tempo))


METRICS: dict[str, tuple[str, Metric]] = {
    "T2A": ("every category named is heard", named),
    "V2A": ("F1 of events by category and onset", in_place),
    "TV2A": ("F1 of events by category and onset", in_place),
    "T2M": ("instrument and tempo right", same_music),
    "V2M": ("instrument and tempo right", same_music),
    "TV2M": ("instrument and tempo right", same_music),
    "completion": ("instrument and tempo kept", same_music),
}


def task_rows(
    maker: Maker, hear: Hear, audio: Unseen, music: Unseen, sampling: SamplingConfig, seed: int, bar: tqdm
) -> list[Row]:
    """The eight rows in the order of `TASKS`. `bar` advances by `clips_needed`."""
    rows = []
    for k, task in enumerate(TASKS):
        unseen = music if task in MUSIC else audio
        bar.set_postfix_str(task)
        noise = seed * SEED_STRIDE + (k + 1) * NOISE_STRIDE
        if task == "inpainting":
            rows.append(_inpainting(maker, unseen, sampling, noise, bar))
            continue
        request = request_of(task, unseen)
        latents = make(maker, request, noise, sampling, bar)
        heard, true = (_heard(task, hear, maker, z, unseen) for z in (latents, unseen.latents))
        metric = METRICS[task][1]
        row = _row(task, paired(metric, heard, unseen.scenes), seed)
        row["ceiling"] = float(paired(metric, true, unseen.scenes)[0].mean())
        if metric is in_place:
            # Rhythm alone, which scenes share more of: a weaker test, and one that no right category hides behind.
            onsets = _row(task, paired(on_time, heard, unseen.scenes), seed)
            row["onsets_alone"] = {key: onsets[key] for key in ("value", "low", "high", "control", "lead_low")}
        if request.given is not None:
            row["kept_error"] = kept_error(latents, unseen.latents, request.given)
        rows.append(row)
    return rows


def clips_needed(each: int) -> int:
    """Clips that `task_rows` generates for `each` clips a task; inpainting takes two for one."""
    return (len(TASKS) + 1) * each


def request_of(task: str, unseen: Unseen) -> Request:
    """What a task gives of each clip. Inpainting and completion get no caption: only the sound can lead them."""
    texts = [_text(task, unseen, i) for i in range(len(unseen.scenes))]
    given = {"inpainting": unseen.hole, "completion": unseen.prefix}.get(task)
    return Request(
        texts,
        video=unseen.video if TASKS[task].video else None,
        audio=unseen.latents if given is not None else None,
        given=given,
    )


def matched(heard: list[float], true: list[float]) -> int:
    """Largest number of pairs of onsets (seconds, ascending) within the tolerance, each used once: in order of time,
    which is best where every window is equally wide."""
    i = j = matches = 0
    while i < len(heard) and j < len(true):
        if abs(heard[i] - true[j]) <= TOLERANCE:
            i, j, matches = i + 1, j + 1, matches + 1
        elif heard[i] < true[j]:
            i += 1
        else:
            j += 1
    return matches


def kept_error(latents: Tensor, truth: Tensor, given: Tensor) -> float:
    """Largest difference from the truth (B, L, C) where latents were given (B, L): 0 where they are kept exactly."""
    return float(((latents - truth).abs().amax(dim=2) * given).max())


def paired(metric: Metric, heard: list[Annotation], scenes: list[Scene]) -> tuple[Floats, Floats]:
    """What each sound scores against its own scene, and on average against all the others: (B,) each."""
    table = np.array([[metric(annotation, scene) for scene in scenes] for annotation in heard])
    own = np.diagonal(table)
    return own, (table.sum(axis=1) - own) / (len(heard) - 1)


def _heard(task: str, hear: Hear, maker: Maker, latents: Tensor, unseen: Unseen) -> list[Annotation]:
    if task == "completion":
        # Only what follows the prefix is decoded and heard: a model that ignores it must not be helped by it.
        latents = latents[:, int(unseen.prefix[0].sum()) :]
    return hear(sound(maker, latents))


def _onsets(events: Sequence[Event], categories: Set[str] | None = None) -> list[float]:
    return [event.onset for event in events if categories is None or event.category in categories]


def _f1(matches: int, both: int) -> float:
    """`both` counts what is on either side; 1 where neither side has anything."""
    return 2 * matches / both if both else 1.0


def _inpainting(maker: Maker, audio: Unseen, sampling: SamplingConfig, noise: int, bar: tqdm) -> Row:
    """Error of the fill against that of a fill from the same noise without any condition; both without guidance, which
    an unconditional fill cannot have, and which moves a fill away from the one that the rest of the clip suggests."""
    sampling = replace(sampling, guidance=1.0)
    request = request_of("inpainting", audio)
    fill = make(maker, request, noise, sampling, bar)
    blind = make(maker, Request([""] * len(audio.scenes)), noise, sampling, bar)
    hole = 1 - audio.hole
    scores = (_error(fill, audio.latents, hole), _error(blind, audio.latents, hole))
    row = _row("inpainting", scores, noise, better="lower")
    return row | {"ceiling": 0.0, "kept_error": kept_error(fill, audio.latents, audio.hole)}


def _error(latents: Tensor, truth: Tensor, where: Tensor) -> Floats:
    """Mean absolute error of each clip (B,) over the frames where `where` (B, L) is 1."""
    by_frame = (latents - truth).abs().mean(dim=2)
    return ((by_frame * where).sum(dim=1) / where.sum(dim=1)).double().numpy()


def _row(task: str, scores: tuple[Floats, Floats], seed: int, better: str = "higher") -> Row:
    """`scores` are the values and their controls, clip by clip."""
    values, controls = scores
    low, high = bootstrap_interval(values, seed)
    lead = values - controls if better == "higher" else controls - values
    return {
        "task": task,
        "metric": METRICS[task][0] if task in METRICS else "error of latents in the hole",
        "better": better,
        "clips": len(values),
        "value": float(values.mean()),
        "low": low,
        "high": high,
        "control": float(controls.mean()),
        "lead": float(lead.mean()),
        "lead_low": bootstrap_interval(lead, seed)[0],
    }


def _text(task: str, unseen: Unseen, i: int) -> str:
    if default := TASKS[task].default_text:
        return default
    texts = unseen.records[i].captions
    if task in MUSIC:
        texts = [text for text in texts if "bpm" in text]  # the others say less than what is judged
    return texts[i % len(texts)]
