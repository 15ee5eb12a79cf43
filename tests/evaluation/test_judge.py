from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from audiox_trainer.models.judge import Judge, JudgeOutput
from audiox_trainer.trainer.evaluation.annotation import annotate_waves, decode
from audiox_trainer.trainer.evaluation.judge_training import JUDGE, _BatchSource, render_scenes, targets, train_judge
from audiox_trainer.trainer.scenes.scene import INSTRUMENTS, SAMPLES, TEMPI, Scene, SoundEvent, audio_scene, draw_scene
from audiox_trainer.trainer.scorers.embedded_judge import listen, load_judge, save_judge

EXTENDED = replace(JUDGE, categories=(*JUDGE.categories, "laser"))
FRAMES = SAMPLES // JUDGE.hop
STEP = JUDGE.frame_seconds


def silent_output() -> JudgeOutput:
    names = len(JUDGE.categories)
    return JudgeOutput(
        activity=torch.full((1, FRAMES, names), -6.0),
        onset=torch.full((1, FRAMES, names), -6.0),
        presence=torch.full((1, names + len(INSTRUMENTS)), -6.0),
        tempo=torch.zeros(1, len(TEMPI)),
        embedding=torch.zeros(1, JUDGE.embedding),
    )


def put(output: JudgeOutput, category: str, start: int, stop: int, onsets: tuple[int, ...] = ()) -> None:
    k = JUDGE.categories.index(category)
    output.activity[0, start:stop, k] = 6.0
    for frame in onsets:
        output.onset[0, frame - 1 : frame + 2, k] = torch.tensor([0.5, 4.0, 0.5])


def test_decode_times_and_order() -> None:
    output = silent_output()
    put(output, "kick", 60, 72, (60,))
    put(output, "bell", 10, 40, (10,))
    (heard,) = decode(output, JUDGE)
    assert heard.order == ("bell", "kick")
    assert heard.events[0] == SoundEvent("bell", 10 * STEP, 40 * STEP)
    assert heard.counts == {"bell": 1, "kick": 1}
    assert (heard.instrument, heard.tempo) == ("", 0)


def test_decode_counts_repetitions_by_gap_and_by_onset() -> None:
    output = silent_output()
    put(output, "horn", 5, 25)
    put(output, "horn", 30, 50)
    put(output, "horn", 60, 100, (60, 80))  # the gap between the last two went unnoticed, the onset did not
    (heard,) = decode(output, JUDGE)
    assert [round(e.onset / STEP) for e in heard.events] == [5, 30, 60, 80]
    assert [round(e.offset / STEP) for e in heard.events] == [25, 50, 80, 100]


def test_decode_ignores_flicker_and_a_second_peak_of_one_onset() -> None:
    output = silent_output()
    put(output, "dog", 20, 22, (20,))  # 32 ms
    put(output, "siren", 40, 80, (40, 44))
    (heard,) = decode(output, JUDGE)
    assert heard.order == ("siren",)


def test_decode_bridges_a_dip_of_activity() -> None:
    output = silent_output()
    put(output, "whistle", 40, 80, (40,))
    output.activity[0, 60, JUDGE.categories.index("whistle")] = -0.4  # a probability of 0.40
    assert decode(output, JUDGE)[0].order == ("whistle",)


def test_decode_silence() -> None:
    assert decode(silent_output(), JUDGE)[0].events == ()


def test_decode_music() -> None:
    output = silent_output()
    output.presence[0, len(JUDGE.categories) + INSTRUMENTS.index("organ")] = 3.0
    output.tempo[0, 2] = 1.0
    (heard,) = decode(output, JUDGE)
    assert (heard.instrument, heard.tempo, heard.events) == ("organ", TEMPI[2], ())


def test_perfect_logits_give_back_the_scene() -> None:
    scenes = [draw_scene(1, index, "audio") for index in range(100)]
    truth = targets(scenes, JUDGE)
    output = JudgeOutput(
        12 * truth["activity"] - 6,
        12 * truth["onset"] - 6,
        truth["presence"],
        torch.zeros(100, len(TEMPI)),
        truth["tempo"],
    )
    for scene, heard in zip(scenes, decode(output, JUDGE), strict=True):
        assert heard.order == tuple(event.category for event in scene.events)
        for event, other in zip(scene.events, heard.events, strict=True):
            assert abs(event.onset - other.onset) < 2 * STEP and abs(event.offset - other.offset) < 2 * STEP


def test_targets_of_music() -> None:
    truth = targets([Scene("music", (), "flute", TEMPI[1], "jazz", "sad", 1)], JUDGE)
    assert truth["activity"].sum() == 0
    assert truth["presence"].argmax() == len(JUDGE.categories) + INSTRUMENTS.index("flute")
    assert truth["tempo"].item() == 1 and truth["music"].item()


def test_shapes_and_class_probabilities() -> None:
    judge = Judge(JUDGE).eval()
    output = listen(judge, torch.randn(3, 1, SAMPLES) * 0.1, batch=2)
    names = len(JUDGE.categories)
    assert output.activity.shape == output.onset.shape == (3, FRAMES, names)
    assert output.presence.shape == (3, names + len(INSTRUMENTS))
    assert output.embedding.shape == (3, JUDGE.embedding)
    probabilities = output.class_probabilities()
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(3))


def test_frames_are_where_the_sound_is() -> None:
    wave = torch.zeros(1, 1, SAMPLES)
    wave[0, 0, 50 * JUDGE.hop : 51 * JUDGE.hop] = 0.5
    level = Judge(JUDGE).spectrogram(wave)[0].mean(dim=0)
    assert level.shape == (FRAMES,) and level.argmax() == 50


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, threads that wait for each other take ten times as long
    yield train_judge(seed=0, through_codec=lambda wave: wave, steps=50, batch=16, pool=16, learning_rate=2e-3)
    torch.set_num_threads(threads)


def test_a_short_training_hears_what_sounds(judge: Judge) -> None:
    rng = np.random.default_rng(0)
    scenes = [audio_scene([name], rng) for name in JUDGE.categories for _ in range(4)]
    heard = listen(judge, render_scenes(scenes)).activity.amax(dim=1).argmax(dim=1)
    right = [JUDGE.categories[i] == scene.events[0].category for i, scene in zip(heard.tolist(), scenes, strict=True)]
    assert np.mean(right) > 0.5  # chance is 0.1


def test_an_extra_category_is_learned_too() -> None:
    """Its scenes are among those of the training."""
    source = _BatchSource(EXTENDED, seed=0, through_codec=lambda wave: wave, pool=64, batch=32, extra="laser")
    share = np.mean(["laser" in {e.category for e in s.events} for s in source.pool_scenes if s.domain == "audio"])
    assert 0.1 < share < 0.45
    activity = source.batch().activity
    assert activity.shape[2] == 11 and activity[..., -1].any()
    judge = train_judge(0, lambda wave: wave, steps=1, batch=4, pool=4, extra="laser")
    assert judge.config == EXTENDED


def test_saved_judge_is_the_same(judge: Judge, tmp_path: Path) -> None:
    save_judge(judge, tmp_path / "judge")
    again = load_judge(tmp_path / "judge")
    waves = render_scenes([draw_scene(5, index, "audio") for index in range(4)])
    assert again.config == judge.config
    assert torch.equal(listen(judge, waves).embedding, listen(again, waves).embedding)
    assert annotate_waves(judge, waves) == annotate_waves(again, waves)
