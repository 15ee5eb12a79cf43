import hashlib
import json
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from audiox_trainer.trainer.scenes import scene_captions as cap
from audiox_trainer.trainer.scenes.scene import (
    AUDIO_CATEGORIES,
    DURATIONS,
    EXTRA_CATEGORIES,
    INSTRUMENTS,
    MIN_GAP,
    SAMPLE_RATE,
    SAMPLES,
    SECONDS,
    TEMPI,
    Scene,
    audio_scene,
    draw_scene,
    scene_annotation,
    scene_notes,
)
from audiox_trainer.trainer.scenes.synth import FRAME_RATE, render_audio, render_video


def envelope(wave: NDArray[np.float32], window: int = 32) -> NDArray[np.float64]:
    """RMS in windows of 4 ms."""
    return np.sqrt((wave.reshape(-1, window).astype(np.float64) ** 2).mean(axis=1))


@pytest.mark.parametrize("domain", ["audio", "music"])
def test_seed_and_index_settle_everything(domain: str) -> None:
    first, again, other = (draw_scene(3, index, domain) for index in (5, 5, 6))
    assert first == again
    assert first != other
    assert render_audio(first).tobytes() == render_audio(again).tobytes() != render_audio(other).tobytes()
    assert render_video(first).tobytes() == render_video(again).tobytes() != render_video(other).tobytes()
    assert draw_scene(4, 5, domain) != first


def test_unknown_domain_is_refused() -> None:
    with pytest.raises(ValueError, match="speech"):
        draw_scene(0, 0, "speech")


def test_an_extra_category_is_only_where_it_is_asked_for() -> None:
    ordinary = [draw_scene(3, index, "audio") for index in range(100)]
    assert not {e.category for scene in ordinary for e in scene.events} & set(EXTRA_CATEGORIES)
    for index, scene in enumerate(ordinary):
        names = [e.category for e in scene.events]
        found = [e.category for e in draw_scene(3, index, "audio", "laser").events]
        replaced = {a for a, b in zip(names, found, strict=True) if a != b}
        assert len(replaced) == 1 and found == ["laser" if name in replaced else name for name in names]
    assert draw_scene(3, 5, "music", "laser") == draw_scene(3, 5, "music")
    with pytest.raises(ValueError, match="extra category 'bell'; allowed: laser"):
        draw_scene(3, 5, "audio", "bell")


@pytest.mark.parametrize("count", [0, 6])
def test_number_of_events_is_bounded(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} events"):
        audio_scene(["bell"] * count, np.random.default_rng(0))


def test_events_fit_with_gaps_and_natural_durations() -> None:
    for index in range(500):
        events = draw_scene(0, index, "audio").events
        assert 1 <= len(events) <= 5
        assert 0 <= events[0].onset and events[-1].offset <= SECONDS
        for event in events:
            shortest, longest = DURATIONS[event.category]
            assert shortest - 0.002 <= event.offset - event.onset <= longest + 0.002
        for before, after in pairwise(events):
            assert after.onset - before.offset >= MIN_GAP - 0.002


def test_five_of_any_category_fit() -> None:
    rng = np.random.default_rng(1)
    for category in DURATIONS:
        for _ in range(50):
            assert audio_scene([category] * 5, rng).events[-1].offset <= SECONDS


def test_the_four_prompt_types_are_covered() -> None:
    scenes = [[event.category for event in draw_scene(0, i, "audio").events] for i in range(1000)]
    repeated = sum(len(names) > 1 and len(set(names)) == 1 for names in scenes)
    distinct = sum(len(names) > 1 and len(set(names)) == len(names) for names in scenes)
    single = sum(len(names) == 1 for names in scenes)
    mixed = len(scenes) - repeated - distinct - single
    assert min(repeated, distinct, single, mixed) > 70


def test_annotation_matches_scene() -> None:
    for index in range(100):
        scene = draw_scene(2, index, "audio")
        facts = json.loads(json.dumps(scene_annotation(scene)))
        names = [event.category for event in scene.events]
        assert facts["category"] == {name: names.count(name) for name in names}
        assert facts["time_relation"].split(", ") == names
        assert [(e["start"], e["end"], e["event"]) for e in facts["SED"]] == [
            (event.onset, event.offset, event.category) for event in scene.events
        ]
        music = draw_scene(2, index, "music")
        facts = scene_annotation(music)
        assert (facts["genre"], facts["mood"], facts["tempo"]) == (music.genre, music.mood, music.tempo)
        assert facts["instruments"] == [music.instrument]


@pytest.mark.parametrize("category", DURATIONS)
def test_sound_starts_and_ends_as_annotated(category: str) -> None:
    rng = np.random.default_rng(11)
    for count in (1, 3):
        scene = audio_scene([category] * count, rng)
        wave = render_audio(scene)
        assert wave.shape == (1, SAMPLES) and wave.dtype == np.float32
        assert 0.5 <= np.abs(wave).max() <= 0.9
        loud = envelope(wave[0]) > 0.03
        edges = np.flatnonzero(np.diff(np.concatenate(([0], loud.astype(int), [0])))) * 0.004
        starts, ends = edges[::2], edges[1::2]
        for event in scene.events:
            assert np.abs(starts - event.onset).min() < 0.04
            assert np.abs(ends - event.offset).min() < 0.04
        silent = np.ones(loud.size, dtype=bool)
        for event in scene.events:
            silent[int(event.onset / 0.004) : int(event.offset / 0.004) + 1] = False
        assert not loud[silent].any()


def spectrum(wave: NDArray[np.float32]) -> NDArray[np.float64]:
    frames = np.lib.stride_tricks.sliding_window_view(wave[0].astype(np.float64), 512)[::256]
    power = np.abs(np.fft.rfft(frames * np.hanning(512))) ** 2
    bands = np.log(power.mean(axis=0).reshape(-1)[:256].reshape(32, 8).mean(axis=1) + 1e-4)
    return (bands - bands.mean()) / bands.std()


def test_every_category_has_its_own_spectrum() -> None:
    rng = np.random.default_rng(5)
    mean = {
        name: np.mean([spectrum(render_audio(audio_scene([name], rng))) for _ in range(12)], axis=0)
        for name in DURATIONS
    }
    for name in DURATIONS:
        for _ in range(5):
            sound = spectrum(render_audio(audio_scene([name], rng)))
            assert min(mean, key=lambda other: float(np.square(mean[other] - sound).sum())) == name


@pytest.mark.parametrize("tempo", TEMPI)
@pytest.mark.parametrize("genre", ["march", "waltz", "jazz"])
def test_music_beats_keep_the_tempo(tempo: int, genre: str) -> None:
    scene = Scene("music", (), "piano", tempo, genre, "sad", 9)
    beats = np.array([note.onset for note in scene_notes(scene) if note.on_beat])
    assert len(beats) >= 3
    assert np.allclose(np.diff(beats), 60 / tempo)
    level = envelope(render_audio(scene)[0])
    for beat in beats:
        window = int(beat / 0.004)
        assert level[window + 1 : window + 8].max() > 2 * level[max(window - 1, 0)]


@pytest.mark.parametrize("tempo", TEMPI)
@pytest.mark.parametrize("genre", ["march", "waltz", "jazz"])
def test_what_precedes_music_keeps_its_beat(tempo: int, genre: str) -> None:
    for seed in range(5):
        scene = Scene("music", (), "piano", tempo, genre, "sad", seed)
        before, beats = (
            np.array([note.onset for note in scene_notes(scene, earlier) if note.on_beat]) for earlier in (True, False)
        )
        assert 0 <= before[0] < 60 / tempo + 0.02 and before[-1] < SECONDS
        steps = np.diff(np.concatenate((before - SECONDS, beats))) * tempo / 60
        assert np.allclose(steps, np.round(steps)) and steps.max() < 2.5, "one beat may be cut at the joint"
    wave = render_audio(scene, preceding=True)
    assert wave.shape == (1, SAMPLES) and 0.5 <= np.abs(wave).max() <= 0.9
    assert not np.array_equal(wave, render_audio(scene))


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_music_is_loud_enough(instrument: str) -> None:
    for seed in range(20):
        wave = render_audio(Scene("music", (), instrument, TEMPI[seed % 3], "jazz", "happy", seed))
        assert 0.5 <= np.abs(wave).max() <= 0.9


def test_video_lights_up_with_the_sound() -> None:
    for index in range(60):
        scene = draw_scene(8, index, "audio")
        video = render_video(scene)
        assert video.shape == (32, 16, 16, 3) and video.dtype == np.uint8
        light = video.reshape(32, -1).astype(np.float64).sum(axis=1)
        times = (np.arange(32) + 0.5) / FRAME_RATE
        sounding = np.zeros(32, dtype=bool)
        for event in scene.events:
            sounding |= (times >= event.onset) & (times < event.offset)
        assert light[sounding].min() > light[~sounding].max()
        first = int(np.argmax(sounding))
        assert first == 0 or light[first] > light[first - 1]


def test_every_category_has_its_own_place_and_colour() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for category in DURATIONS:
        scene = audio_scene([category], rng)
        video = render_video(scene).astype(int)
        change = video.max(axis=0) - video.min(axis=0)
        row, column = np.unravel_index(change.sum(axis=2).argmax(), (16, 16))
        seen.add((row // 4, column // 4))
    assert len(seen) == len(DURATIONS) == len(AUDIO_CATEGORIES) + len(EXTRA_CATEGORIES)


def test_music_video_flashes_on_beats() -> None:
    scene = Scene("music", (), "organ", TEMPI[0], "march", "happy", 3)
    light = render_video(scene).reshape(32, -1).astype(np.float64).sum(axis=1)
    for note in scene_notes(scene):
        frame = int(np.ceil(note.onset * FRAME_RATE - 0.5))
        assert light[frame] > 1.2 * light[frame - 1]


AUDIO_FACTS = {
    "caption": "a bell, then two kicks",
    "category": {"bell": 1, "kick": 2},
    "SED": [
        {"start": 0.12, "end": 0.4, "event": "bell"},
        {"start": 0.8, "end": 1.0, "event": "kick"},
        {"start": 1.2, "end": 1.38, "event": "kick"},
    ],
    "time_relation": "bell, kick, kick",
}


def test_captions_hold_the_facts() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        assert all("bell" in text and "kicks" in text for text in cap.category_captions(AUDIO_FACTS))
        assert all("two kicks" in text or "2 kicks" in text for text in cap.count_captions(AUDIO_FACTS, rng))
        for text in cap.order_captions(AUDIO_FACTS, rng):
            assert (text.index("bell") < text.index("kick")) != ("after" in text)
    for text in cap.time_captions(AUDIO_FACTS):
        assert all(stamp in text for stamp in ("0.1", "0.4", "0.8", "1.0", "1.2", "1.4"))
    assert "a bell, then two kicks" in cap.scene_captions(AUDIO_FACTS, rng)


def test_captions_of_music_hold_the_facts() -> None:
    facts = {"instruments": ["organ"], "tempo": 250, "genre": "waltz", "mood": "sad"}
    texts = cap.scene_captions(facts, np.random.default_rng(0))
    assert texts and all("organ" in text for text in texts)
    everything = " ".join(cap.music_captions(facts))
    assert all(word in everything for word in ("fast", "250 bpm", "waltz", "sad", "an organ"))


@pytest.mark.parametrize(
    "facts", [{}, {"category": {}}, {"caption": ""}, {"time_relation": "interleave"}, {"SED": []}, {"tempo": 120}]
)
def test_missing_fields_give_no_captions(facts: dict[str, object]) -> None:
    assert cap.scene_captions(facts, np.random.default_rng(0)) == []


def test_uncounted_sounds_stay_uncounted() -> None:
    facts = {"category": {"background noise": None, "bus": 3}}
    texts = cap.count_captions(facts, np.random.default_rng(0))
    assert all("background noise" in text and "noises" not in text and "buses" in text for text in texts)


def test_captions_are_short_and_many() -> None:
    rng = np.random.default_rng(0)
    for index in range(300):
        for domain in ("audio", "music"):
            texts = cap.scene_captions(scene_annotation(draw_scene(1, index, domain)), rng)
            assert len(texts) >= 3
            assert max(len(text.split()) for text in texts) <= cap.MAX_WORDS_TIMED
            assert all(text == text.strip() and "  " not in text for text in texts)


def test_sample_rates_agree() -> None:
    assert SAMPLES / SAMPLE_RATE == 32 / FRAME_RATE == SECONDS


def test_captions_of_the_embedded_data_are_the_same_as_ever() -> None:
    """Weights, tables and figures in the documents are of models that were trained on exactly these."""
    digest = hashlib.sha256()
    for domain in ("audio", "music"):
        for index in range(200):
            rng = np.random.default_rng([0, index])
            texts = cap.scene_captions(scene_annotation(draw_scene(0, index, domain)), rng)
            digest.update(json.dumps([texts, rng.random()]).encode())
    assert digest.hexdigest()[:16] == "b0d00a7fd00391ca"
