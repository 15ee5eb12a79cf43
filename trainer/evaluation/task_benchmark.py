"""The eight tasks on unseen scenes: does the sound follow its own condition better than that of another clip?

B clips, L latent frames, C latent channels.

Every row has the metric of the sounds (`value`, with the 95 % interval `low` to `high`), the same against the
conditions of other clips (`control`), the lead over the control (`lead`, and its lower bound `lead_low`: above 0 where
the condition is followed), and the score of the true scenes through the codec (`ceiling`).
"""

from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ...models.audiox import SamplingConfig
from ..core.tasks import TASKS, Domain, Task
from ..generation.batching import SEED_STRIDE, SoundModel, decode_latents, sample_latents
from ..generation.clip_request import ClipRequest
from ..scenes.scene import Scene, SoundEvent
from .annotation import Annotation
from .held_out import HeldOutClips
from .metrics import Floats, bootstrap_interval
from .t2a_prompts import TOLERANCE

Annotate = Callable[[Tensor], list[Annotation]]  # waves (B, 1, samples) -> an annotation of each
Metric = Callable[[Annotation, Scene], float]  # score of a sound against a scene, 0 to 1
Row = dict[str, Any]

NOISE_STRIDE = SEED_STRIDE // 10  # between the noise seeds of two tasks


def has_categories(sound: Annotation, scene: Scene) -> float:
    """Whether the sound has every category of the scene."""
    return float({event.category for event in scene.events} <= set(sound.order))


def event_f1(sound: Annotation, scene: Scene) -> float:
    """F1 of the sound's events against the scene's: the same category, onsets within the tolerance, one to one."""
    categories = {event.category for event in (*sound.events, *scene.events)}
    matches = sum(matched(*(_onsets(x.events, {category}) for x in (sound, scene))) for category in categories)
    return _f1(matches, len(sound.events) + len(scene.events))


def onset_f1(sound: Annotation, scene: Scene) -> float:
    """F1 of the onsets alone, whatever their categories."""
    return _f1(matched(_onsets(sound.events), _onsets(scene.events)), len(sound.events) + len(scene.events))


def same_music(sound: Annotation, scene: Scene) -> float:
    """Whether instrument and tempo are both right."""
    return float((sound.instrument, sound.tempo) == (scene.instrument, scene.tempo))


METRICS: dict[str, Metric] = {"categories": has_categories, "events": event_f1, "music": same_music}  # of a `Task`


def task_rows(
    model: SoundModel,
    annotate: Annotate,
    clips: dict[Domain, HeldOutClips],
    sampling: SamplingConfig,
    seed: int,
    progress: tqdm,
) -> list[Row]:
    """The eight rows in the order of `TASKS`, on the clips of each domain. `progress` advances by `clips_needed`."""
    rows = []
    for k, task in enumerate(TASKS.values()):
        held_out = clips[task.domain]
        progress.set_postfix_str(task.name)
        noise = seed * SEED_STRIDE + (k + 1) * NOISE_STRIDE
        if task.metric == "hole":
            rows.append(_inpainting(task, model, held_out, sampling, noise, progress))
            continue
        request = task_request(task, held_out)
        latents = sample_latents(model, request, noise, sampling, progress)
        sounds, truth = (_annotations(task, annotate, model, z, held_out) for z in (latents, held_out.latents))
        metric = METRICS[task.metric]
        row = _row(task, scores_and_controls(metric, sounds, held_out.scenes), seed)
        row["ceiling"] = float(scores_and_controls(metric, truth, held_out.scenes)[0].mean())
        if metric is event_f1:
            # Rhythm alone, which scenes have more in common: a weaker test, but no right category can hide a failure.
            onsets = _row(task, scores_and_controls(onset_f1, sounds, held_out.scenes), seed)
            row["onsets_alone"] = {key: onsets[key] for key in ("value", "low", "high", "control", "lead_low")}
        if request.given_mask is not None:
            row["given_error"] = given_error(latents, held_out.latents, request.given_mask)
        rows.append(row)
    return rows


def clips_needed(per_task: int) -> int:
    """Clips that `task_rows` generates for `per_task` clips per task; inpainting takes two for one."""
    return (len(TASKS) + 1) * per_task


def task_request(task: Task, clips: HeldOutClips) -> ClipRequest:
    """A task's conditions from each clip. Inpainting and completion get no caption: only the sound can lead them."""
    texts = [_text(task, clips, i) for i in range(len(clips.scenes))]
    given_mask = {"around a hole": clips.inpainting_given, "preceding": clips.completion_given, None: None}[task.audio]
    return ClipRequest(
        texts,
        video=clips.video if task.video else None,
        audio=clips.latents if task.audio else None,
        given_mask=given_mask,
    )


def matched(onsets: list[float], true: list[float]) -> int:
    """Largest number of pairs of onsets (seconds, ascending) within the tolerance, each used once. Matching in order of
    time is optimal, because every window is equally wide."""
    i = j = matches = 0
    while i < len(onsets) and j < len(true):
        if abs(onsets[i] - true[j]) <= TOLERANCE:
            i, j, matches = i + 1, j + 1, matches + 1
        elif onsets[i] < true[j]:
            i += 1
        else:
            j += 1
    return matches


def given_error(latents: Tensor, truth: Tensor, given_mask: Tensor) -> float:
    """Largest difference from the truth (B, L, C) where latents were given (B, L): 0 where they stayed exactly."""
    return float(((latents - truth).abs().amax(dim=2) * given_mask).max())


def scores_and_controls(metric: Metric, sounds: list[Annotation], scenes: list[Scene]) -> tuple[Floats, Floats]:
    """The score of each sound against its own scene, and its mean score against all the others: (B,) each."""
    table = np.array([[metric(sound, scene) for scene in scenes] for sound in sounds])
    own = np.diagonal(table)
    return own, (table.sum(axis=1) - own) / (len(sounds) - 1)


def _annotations(
    task: Task, annotate: Annotate, model: SoundModel, latents: Tensor, clips: HeldOutClips
) -> list[Annotation]:
    if task.audio == "preceding":
        # Only what follows the prefix is decoded and judged: the prefix must not help a model that ignores it.
        latents = latents[:, int(clips.completion_given[0].sum()) :]
    return annotate(decode_latents(model, latents))


def _onsets(events: Sequence[SoundEvent], categories: Set[str] | None = None) -> list[float]:
    return [event.onset for event in events if categories is None or event.category in categories]


def _f1(matches: int, both: int) -> float:
    """`both` counts the items of either side; 1 where neither side has any."""
    return 2 * matches / both if both else 1.0


def _inpainting(
    task: Task, model: SoundModel, clips: HeldOutClips, sampling: SamplingConfig, noise: int, progress: tqdm
) -> Row:
    """Error of the fill against that of a fill from the same noise without any condition. Both are without guidance: an
    unconditional fill cannot have it, and it moves a fill away from the one that the rest of the clip suggests."""
    sampling = replace(sampling, guidance=1.0)
    fill = sample_latents(model, task_request(task, clips), noise, sampling, progress)
    unconditional = sample_latents(model, ClipRequest([""] * len(clips.scenes)), noise, sampling, progress)
    scores = tuple(_error(latents, clips.latents, 1 - clips.inpainting_given) for latents in (fill, unconditional))
    row = _row(task, (scores[0], scores[1]), noise, better="lower")
    return row | {"ceiling": 0.0, "given_error": given_error(fill, clips.latents, clips.inpainting_given)}


def _error(latents: Tensor, truth: Tensor, mask: Tensor) -> Floats:
    """Mean absolute error of each clip (B,) over the frames where `mask` (B, L) is 1."""
    by_frame = (latents - truth).abs().mean(dim=2)
    return ((by_frame * mask).sum(dim=1) / mask.sum(dim=1)).double().numpy()


def _row(task: Task, scores: tuple[Floats, Floats], seed: int, better: str = "higher") -> Row:
    """`scores` are the values and their controls, clip by clip."""
    values, controls = scores
    low, high = bootstrap_interval(values, seed)
    lead = values - controls if better == "higher" else controls - values
    return {
        "task": task.name,
        "metric": task.measured,
        "better": better,
        "clips": len(values),
        "value": float(values.mean()),
        "low": low,
        "high": high,
        "control": float(controls.mean()),
        "lead": float(lead.mean()),
        "lead_low": bootstrap_interval(lead, seed)[0],
    }


def _text(task: Task, clips: HeldOutClips, i: int) -> str:
    if task.default_text:
        return task.default_text
    texts = clips.records[i].captions
    if task.metric == "music":
        texts = [text for text in texts if "bpm" in text]  # the other captions say less than is judged
    return texts[i % len(texts)]
