"""The eight tasks with generators and ears whose answers are known: what deserves the ceiling reaches it, and a deaf
generator never leads its control."""

import itertools
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from tqdm import tqdm

from audiox_trainer.models.audiox import SamplingConfig
from audiox_trainer.models.config import ModelConfig
from audiox_trainer.trainer.core.tasks import TASKS
from audiox_trainer.trainer.evaluation.annotation import Annotation
from audiox_trainer.trainer.evaluation.held_out import HeldOutClips, draw_held_out
from audiox_trainer.trainer.evaluation.t2a_prompts import TOLERANCE
from audiox_trainer.trainer.evaluation.task_benchmark import (
    MIXTURES,
    PRECEDING,
    clips_needed,
    event_f1,
    given_error,
    matched,
    onset_f1,
    task_request,
    task_rows,
)
from audiox_trainer.trainer.generation.clip_request import ClipRequest
from audiox_trainer.trainer.scenes.scene import Scene, SoundEvent

CLIPS = 40
SAMPLING = SamplingConfig("euler", 25, 3.0)


@pytest.fixture(scope="module")
def config(small) -> ModelConfig:
    return small.model


@pytest.fixture(scope="module")
def unseen(config) -> dict[str, HeldOutClips]:
    return {domain: draw_held_out(config, domain, CLIPS, seed=0) for domain in ("audio", "music")}


@dataclass
class Stub:
    """A maker of the true latents of the clip that a request describes, or, if `deaf`, of other scenes' at random. Its
    waves are the latents themselves."""

    unseen: dict[str, HeldOutClips]
    strangers: dict[str, HeldOutClips]
    deaf: bool

    def latents(self, request: ClipRequest, seed: int, sampling: SamplingConfig | None = None) -> Tensor:
        parts = [self._answer(request, i, seed + i) for i in range(len(request.texts))]
        made = torch.stack(parts)
        if request.audio is None or request.given_mask is None:
            return made
        return torch.where(request.given_mask[..., None] > 0, request.audio, made)

    def _answer(self, request: ClipRequest, i: int, seed: int) -> Tensor:
        rng = np.random.default_rng(seed)
        found = [] if self.deaf else [z for u in self.unseen.values() for z in matching(u, request, i)]
        pool = found or [z for u in self.strangers.values() for z in u.latents]
        return pool[rng.integers(len(pool))]

    def waves(self, latents: Tensor) -> Tensor:
        return latents.flatten(1)[:, None]


def matching(unseen: HeldOutClips, request: ClipRequest, i: int) -> list[Tensor]:
    """The true latents of every clip of which all that is given for sample i is true."""
    fits = torch.ones(len(unseen.scenes), dtype=torch.bool)
    if request.video is not None:
        fits &= torch.tensor([torch.equal(v, request.video[i]) for v in unseen.video])
    if request.audio is not None:
        kept = request.given_mask[i] > 0
        fits &= torch.tensor([torch.equal(z[kept], request.audio[i][kept]) for z in unseen.latents])
    if request.preceding is not None:
        fits &= torch.tensor([torch.equal(z, request.preceding[i]) for z in unseen.preceding])
    elif request.video is None and request.audio is None:
        fits &= torch.tensor([request.texts[i] in record.captions for record in unseen.records])
    return [unseen.latents[k] for k in fits.nonzero()[:, 0].tolist()]


def ears(*groups: HeldOutClips):
    """Hears the scene whose latents, or whose last latents, a wave is."""

    def hear(waves: Tensor) -> list[Annotation]:
        return [recognise(wave.flatten()) for wave in waves]

    def recognise(wave: Tensor) -> Annotation:
        for group in groups:
            ends = group.latents.flatten(1)[:, -wave.numel() :]
            distance = (ends - wave).abs().amax(dim=1)
            if distance.min() == 0:
                scene: Scene = group.scenes[int(distance.argmin())]
                return Annotation(scene.events, scene.instrument, scene.tempo)
        return Annotation((), "", 0)  # half of one scene and half of another

    return hear


@pytest.fixture(scope="module")
def rows(config, unseen) -> dict[bool, dict[str, dict]]:
    """Rows of the oracle (False) and of the deaf generator (True), by task."""
    strangers = {domain: draw_held_out(config, domain, CLIPS, seed=1) for domain in unseen}
    hear = ears(*unseen.values(), *strangers.values())
    result = {}
    for deaf in (False, True):
        with tqdm(total=clips_needed(CLIPS)) as bar:
            stub = Stub(unseen, strangers, deaf)
            made = task_rows(stub, hear, unseen, SAMPLING, 0, bar)
            assert bar.n == bar.total
        result[deaf] = {row["task"]: row for row in made}
    return result


def test_there_is_a_row_for_every_task(rows):
    assert list(rows[False]) == list(TASKS)
    json.dumps(rows[False], allow_nan=False)


@pytest.mark.parametrize("task", TASKS)
def test_the_truth_reaches_the_ceiling_and_leads_its_control(rows, task):
    row = rows[False][task]
    if task == "inpainting":  # a hole can hide all that sounds, and several scenes fit what is left
        assert row["value"] < 0.1 and row["ceiling"] == 0.0
    else:
        assert row["value"] == row["ceiling"] == 1.0
    assert row["low"] <= row["value"] <= row["high"]
    assert row["lead_low"] > 0.2
    assert row["better"] == ("lower" if task == "inpainting" else "higher")


@pytest.mark.parametrize("task", TASKS)
def test_a_deaf_generator_leads_nowhere(rows, task):
    row = rows[True][task]
    assert row["lead_low"] <= 0
    assert abs(row["value"] - row["control"]) < 0.2


@pytest.fixture(scope="module")
def mixed(config, unseen) -> dict[str, dict[str, dict]]:
    """The oracle's rows with those of mixtures, by task."""
    strangers = {domain: draw_held_out(config, domain, CLIPS, seed=1) for domain in unseen}
    with tqdm(total=clips_needed(CLIPS, mixtures=True)) as bar:
        stub = Stub(unseen, strangers, False)
        made = task_rows(stub, ears(*unseen.values()), unseen, SAMPLING, 0, bar, mixtures=True)
        assert bar.n == bar.total
    return {row["task"]: row for row in made}


def test_mixtures_are_judged_against_the_sound_alone(mixed, rows):
    for task, row in mixed.items():
        if task not in ("inpainting", "completion"):
            assert "mixtures" not in row
            continue
        alone = rows[False][task]
        assert list(row["mixtures"]) == [*MIXTURES, PRECEDING][: 4 if task == "completion" else 3]
        assert {key: value for key, value in row.items() if key != "mixtures"} == alone
        for mixture in map(row["mixtures"].get, MIXTURES):
            assert mixture["control"] == alone["value"] and mixture["better"] == alone["better"]
    filled = mixed["inpainting"]["mixtures"]
    assert filled["video"]["value"] == 0, "sound and video together leave no doubt"
    assert filled["video"]["lead"] == mixed["inpainting"]["value"]
    assert mixed["completion"]["mixtures"]["text"]["lead"] == 0


def test_what_precedes_a_clip_is_judged_against_other_music(mixed):
    row = mixed["completion"]["mixtures"][PRECEDING]
    assert row["value"] == 1 and row["lead_low"] > 0.2 and row["control"] == mixed["completion"]["control"]


def test_mixtures_give_captions_and_videos(unseen):
    for task, (text, video) in itertools.product(("inpainting", "completion"), MIXTURES.values()):
        group = unseen["music" if task == "completion" else "audio"]
        request = task_request(TASKS[task], group, text, video)
        assert (request.video is not None) == video and request.given_mask is not None
        own = [words in record.captions for words, record in zip(request.texts, group.records, strict=True)]
        assert all(own) == any(own) == text


def test_given_latents_are_compared_to_the_bit(rows):
    assert rows[False]["inpainting"]["given_error"] == rows[True]["completion"]["given_error"] == 0
    truth = torch.zeros(2, 3, 4)
    latents = truth.clone()
    latents[1, 2] = 0.25
    assert given_error(latents, truth, torch.tensor([[1.0, 1, 1], [1, 1, 0]])) == 0
    assert given_error(latents, truth, torch.tensor([[1.0, 1, 1], [0, 0, 1]])) == 0.25


def test_completion_is_judged_without_its_prefix(config, unseen):
    """A generator that repeats the prefix and then plays another scene gains nothing by the prefix."""
    music = unseen["music"]
    heard_shapes = []

    def hear(waves: Tensor) -> list[Annotation]:
        heard_shapes.append(waves.shape[-1])
        return [Annotation((), "", 0)] * len(waves)

    with tqdm(total=clips_needed(CLIPS)) as bar:
        task_rows(Stub(unseen, unseen, True), hear, unseen, SAMPLING, 0, bar)
    frames, channels = config.codec.frames, config.codec.latent_channels
    rest = frames - int(music.completion_given[0].sum())
    assert 0 < rest < frames and torch.equal(
        music.completion_given, music.completion_given[:1].expand_as(music.completion_given)
    )
    assert set(heard_shapes[-2:]) == {rest * channels} and set(heard_shapes[:-2]) == {frames * channels}


def test_requests_give_what_the_task_has(unseen):
    for task in TASKS:
        group = unseen["music" if task in ("T2M", "V2M", "TV2M", "completion") else "audio"]
        request = task_request(TASKS[task], group)
        assert (request.video is not None) == ("V" in task)
        assert (request.given_mask is not None) == (task in ("inpainting", "completion"))
        own = [text in record.captions for text, record in zip(request.texts, group.records, strict=True)]
        assert all(own) == any(own) == (task in ("T2A", "TV2A", "T2M", "TV2M"))
    for scene, text in zip(unseen["music"].scenes, task_request(TASKS["T2M"], unseen["music"]).texts, strict=True):
        assert scene.instrument in text and f"{scene.tempo} bpm" in text


def test_unseen_clips_are_reproducible_and_many(config, unseen):
    again = draw_held_out(config, "audio", CLIPS, seed=0)
    assert again.scenes == unseen["audio"].scenes and torch.equal(again.latents, unseen["audio"].latents)
    assert torch.equal(again.inpainting_given, unseen["audio"].inpainting_given) and torch.equal(
        again.video, unseen["audio"].video
    )
    assert len({scene.seed for scene in again.scenes}) == CLIPS
    with pytest.raises(ValueError, match="at least 2"):
        draw_held_out(config, "audio", 1, seed=0)


def test_matched_onsets():
    near, far = 0.9 * TOLERANCE, 1.1 * TOLERANCE
    assert matched([], []) == matched([0.5], []) == 0
    assert matched([0.5 + near, 1.0], [0.5, 1.0]) == 2
    assert matched([0.5 + far], [0.5]) == 0
    assert matched([0.5], [0.5, 0.6]) == 1  # one onset serves one event only
    assert matched([0.5, 0.6], [0.6 - near, 0.6 + near]) == 2


def test_f1_of_events():
    def events(*pairs: tuple[str, float]) -> tuple[SoundEvent, ...]:
        return tuple(SoundEvent(name, onset, onset + 0.1) for name, onset in pairs)

    def f1(heard: tuple[SoundEvent, ...], true: tuple[SoundEvent, ...]) -> tuple[float, float]:
        scene = Scene("audio", true, "", 0, "", "", 0)
        return event_f1(Annotation(heard, "", 0), scene), onset_f1(Annotation(heard, "", 0), scene)

    truth = events(("bell", 0.2), ("kick", 1.0), ("kick", 1.5))
    assert f1(truth, truth) == (1, 1) and f1((), truth) == (0, 0)
    assert f1(events(("bell", 0.2), ("kick", 1.0), ("bell", 1.5)), truth) == pytest.approx((2 / 3, 1))
    assert f1(events(("bell", 0.2)), truth) == pytest.approx((0.5, 0.5))
    # Everything all the time pays for what it hits.
    noise = events(*sorted(((name, k / 5) for name in ("bell", "kick") for k in range(10)), key=lambda e: e[1]))
    assert f1(noise, truth) == pytest.approx((6 / 23, 6 / 23))


def test_without_videos_there_is_no_task_that_takes_one(unseen):
    blind = {domain: replace(clips, video=clips.video[:, :0, :0]) for domain, clips in unseen.items()}
    with tqdm(total=clips_needed(CLIPS, video=False)) as bar:
        found = task_rows(Stub(blind, blind, False), ears(*blind.values()), blind, SAMPLING, 0, bar)
        assert bar.n == bar.total
    assert [row["task"] for row in found] == [name for name, task in TASKS.items() if not task.video]
    with tqdm(total=clips_needed(CLIPS, video=False, mixtures=True)) as bar:
        found = task_rows(Stub(blind, blind, False), ears(*blind.values()), blind, SAMPLING, 0, bar, mixtures=True)
        assert bar.n == bar.total
    assert [list(row["mixtures"]) for row in found if "mixtures" in row] == [["text"], ["text", PRECEDING]]
