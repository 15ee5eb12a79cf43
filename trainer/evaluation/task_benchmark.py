"""The eight tasks on unseen scenes: does the sound follow its own condition better than that of another clip?

B clips, L latent frames, C latent channels.

Every row has the metric of the sounds (`value`, with the 95 % interval `low` to `high`), the same against the
conditions of other clips (`control`), the lead over the control (`lead`, and its lower bound `lead_low`: above 0 where
the condition is followed), and the score of the true scenes through the codec (`ceiling`). A task that is given sound
may have `mixtures` (Tables A.6 and A.7): the same with a text, a video or both beside the sound, whose control is the
sound alone; and for completion what precedes the clip in place of its beginning, whose control is that of every row.
"""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ...models.audiox import SamplingConfig
from ..core.tasks import TASKS, Domain, Task
from ..generation.batching import SEED_STRIDE, SoundModel, decode_latents, sample_latents
from ..generation.clip_request import ClipRequest
from ..scenes.scene import Scene, SoundEvent
from ..scorers.statistics import Floats, bootstrap_interval
from .annotation import Annotation
from .held_out import HeldOutClips
from .t2a_prompts import TOLERANCE

Annotate = Callable[[Tensor], list[Annotation]]  # waves (B, 1, samples) -> an annotation of each
Metric = Callable[[Annotation, Scene], float]  # score of a sound against a scene, 0 to 1
Row = dict[str, Any]

NOISE_STRIDE = SEED_STRIDE // 10  # between the noise seeds of two tasks
PRECEDING = "what precedes it alone"
MIXTURES = {"text": (True, False), "video": (False, True), "text and video": (True, True)}  # beside a given sound


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
    mixtures: bool = False,
) -> list[Row]:
    """The rows of the eight tasks in the order of `TASKS`, on the clips of each domain. Where the clips have no video,
    as those of a model of sound alone, no task has one. With `mixtures` a task that is given sound is also judged with
    text and video, and with what precedes the clip. `progress` advances by `clips_needed`."""
    rows = []
    for k, task in enumerate(TASKS.values()):
        held_out = clips[task.domain]
        if task.video and not held_out.video.numel():
            continue
        progress.set_postfix_str(task.name)
        noise = seed * SEED_STRIDE + (k + 1) * NOISE_STRIDE
        run = _TaskRun(task, model, annotate, held_out, sampling, noise, progress, mixtures)
        rows.append(_inpainting(run) if task.metric == "hole" else _followed(run, seed))
    return rows


def clips_needed(per_task: int, video: bool = True, mixtures: bool = False) -> int:
    """Clips that `task_rows` generates for `per_task` clips per task, with video or without; inpainting takes two for
    one."""
    tasks = [task for task in TASKS.values() if video or not task.video]
    if not mixtures:
        return (len(tasks) + 1) * per_task
    given = len(_mixtures(video)) * sum(task.audio is not None for task in tasks)
    return (len(tasks) + 1 + given + sum(task.mixture.preceding > 0 for task in tasks)) * per_task


def task_request(task: Task, clips: HeldOutClips, text: bool = False, video: bool = False) -> ClipRequest:
    """A task's conditions from each clip. Inpainting and completion get a caption or a video only where `text` or
    `video` says so: otherwise only the sound can lead them."""
    texts = [_text(task, clips, i, text) for i in range(len(clips.scenes))]
    given_mask = {"around a hole": clips.inpainting_given, "preceding": clips.completion_given, None: None}[task.audio]
    return ClipRequest(
        texts,
        video=clips.video if task.video or video else None,
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


@dataclass(frozen=True)
class _TaskRun:
    """A task on the clips of its domain."""

    task: Task
    model: SoundModel
    annotate: Annotate
    clips: HeldOutClips
    sampling: SamplingConfig
    noise: int  # its seed
    progress: tqdm
    mixtures: bool

    def sample(self, request: ClipRequest) -> Tensor:
        return sample_latents(self.model, request, self.noise, self.sampling, self.progress)

    def annotations(self, latents: Tensor) -> list[Annotation]:
        if self.task.audio == "preceding":
            # Only what follows the prefix is decoded and judged: the prefix must not help a model that ignores it.
            latents = latents[:, int(self.clips.completion_given[0].sum()) :]
        return self.annotate(decode_latents(self.model, latents))

    def with_mixtures(self, row: Row, score: Callable[[Tensor], Floats], alone: Floats, seed: int) -> Row:
        """The row, with those of the mixtures if wanted. `alone`: the scores (B,) of the sound alone."""
        if not (self.mixtures and self.task.audio):
            return row
        rows = {}
        for name, (text, video) in _mixtures(self.clips.video.numel() > 0).items():
            scores = score(self.sample(task_request(self.task, self.clips, text, video))), alone
            rows[name] = _row(self.task, scores, seed, row["better"])
        return row | {"mixtures": rows}


def _followed(run: _TaskRun, seed: int) -> Row:
    """How well sounds follow their own conditions, against those of other clips."""
    task, clips, metric = run.task, run.clips, METRICS[run.task.metric]
    request = task_request(task, clips)
    latents = run.sample(request)
    sounds, truth = (run.annotations(z) for z in (latents, clips.latents))
    scores = scores_and_controls(metric, sounds, clips.scenes)
    row = _row(task, scores, seed)
    row["ceiling"] = float(scores_and_controls(metric, truth, clips.scenes)[0].mean())
    if metric is event_f1:
        # Rhythm alone, which scenes have more in common: a weaker test, but no right category can hide a failure.
        onsets = _row(task, scores_and_controls(onset_f1, sounds, clips.scenes), seed)
        row["onsets_alone"] = {key: onsets[key] for key in ("value", "low", "high", "control", "lead_low")}
    if request.given_mask is not None:
        row["given_error"] = given_error(latents, clips.latents, request.given_mask)

    def score(latents: Tensor) -> Floats:
        return scores_and_controls(metric, run.annotations(latents), clips.scenes)[0]

    row = run.with_mixtures(row, score, scores[0], seed)
    if run.mixtures and task.mixture.preceding:
        after = ClipRequest(list(request.texts), preceding=clips.preceding)
        sounds = run.annotate(decode_latents(run.model, run.sample(after)))
        row["mixtures"][PRECEDING] = _row(task, scores_and_controls(metric, sounds, clips.scenes), seed)
    return row


def _onsets(events: Sequence[SoundEvent], categories: Set[str] | None = None) -> list[float]:
    return [event.onset for event in events if categories is None or event.category in categories]


def _f1(matches: int, both: int) -> float:
    """`both` counts the items of either side; 1 where neither side has any."""
    return 2 * matches / both if both else 1.0


def _inpainting(run: _TaskRun) -> Row:
    """Error of the fill against that of a fill from the same noise without any condition. All are without guidance: an
    unconditional fill cannot have it, and it moves a fill away from the one that the rest of the clip suggests."""
    clips = run.clips
    run = replace(run, sampling=replace(run.sampling, guidance=1.0))

    def score(latents: Tensor) -> Floats:
        return _error(latents, clips.latents, 1 - clips.inpainting_given)

    fill = run.sample(task_request(run.task, clips))
    scores = score(fill), score(run.sample(ClipRequest([""] * len(clips.scenes))))
    row = _row(run.task, scores, run.noise, better="lower")
    row |= {"ceiling": 0.0, "given_error": given_error(fill, clips.latents, clips.inpainting_given)}
    return run.with_mixtures(row, score, scores[0], run.noise)


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


def _mixtures(video: bool) -> dict[str, tuple[bool, bool]]:
    """Those of clips with video or without."""
    return {name: given for name, given in MIXTURES.items() if video or not given[1]}


def _text(task: Task, clips: HeldOutClips, i: int, given: bool) -> str:
    if task.default_text and not given:
        return task.default_text
    texts = clips.records[i].captions
    if task.metric == "music":
        texts = [text for text in texts if "bpm" in text]  # the other captions say less than is judged
    return texts[i % len(texts)]
