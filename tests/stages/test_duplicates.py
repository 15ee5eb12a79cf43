"""Sound and films that are nearly the same are found, in whatever codec, rate, size or level, and others are not."""

import numpy as np
import pytest
import soundfile
import soxr

from audiox_trainer.trainer.stages.curate import filter_manifest
from audiox_trainer.trainer.stages.duplicates import (
    band_energies,
    fingerprint,
    low_frequencies,
    near_duplicates,
    picture_fingerprint,
)
from audiox_trainer.trainer.stages.filter_config import LineFilters
from audiox_trainer.trainer.stages.measure import RATE
from audiox_trainer.trainer.stages.stage import StageWorkers
from tests.helpers.media_files import encode, shown_film
from tests.helpers.preparation import manifest

COUNT = 30


def noisy(seed, seconds=10):
    """(1, n) at RATE: a gliding tone, and noise that comes and goes."""
    rng, n = np.random.default_rng(seed), seconds * RATE
    points = [np.linspace(0, n, count) for count in (40, 50)]
    loudness = np.interp(np.arange(n), points[0], rng.uniform(0, 1, 40))
    hertz = np.interp(np.arange(n), points[1], rng.uniform(100, 3000, 50))
    wave = 0.06 * loudness * rng.standard_normal(n) + 0.3 * np.sin(2 * np.pi * np.cumsum(hertz) / RATE)
    return wave.astype(np.float32)[None]


def print_of(wave):
    return fingerprint([band_energies(wave[:, i : i + RATE], RATE) for i in range(0, wave.shape[1], RATE)])


def resampled(wave):
    return soxr.resample(soxr.resample(wave[0], RATE, 11025), 11025, RATE)[None].astype(np.float32)


CHANGES = {
    "quieter": lambda wave: 0.2 * wave,
    "noise": lambda wave: (wave + 0.003 * np.random.default_rng(9).standard_normal(wave.shape)).astype(np.float32),
    "another rate": resampled,
    "later": lambda wave: np.roll(wave, 250),  # 16 ms
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_sound_is_found(change):
    waves = [noisy(seed) for seed in range(COUNT)]
    prints = [print_of(wave) for wave in waves] + [print_of(CHANGES[change](wave)) for wave in waves]
    found = near_duplicates(prints)
    assert len(found) >= COUNT - 2 and all(later == COUNT + earlier for later, earlier in found.items())


def test_other_sound_is_not():
    assert near_duplicates([print_of(noisy(seed)) for seed in range(100)]) == {}
    rng = np.random.default_rng(0)
    assert near_duplicates([rng.bytes(32).hex() for _ in range(20_000)]) == {}
    assert near_duplicates([]) == near_duplicates(["", "", "00" * 32]) == {}


def test_a_common_silent_beginning_compares_nothing(monkeypatch):
    """Digital silence is zeros; of sound and pictures that go on differently a pair in a million agrees in a part."""
    quiet = noisy(0)
    quiet[:, : 4 * RATE] = 0
    assert print_of(quiet)[:16] == 16 * "0"
    rng, compared, count = np.random.default_rng(0), [0], np.bitwise_count

    def counted(bits):
        compared[0] += len(bits)
        return count(bits)

    monkeypatch.setattr(np, "bitwise_count", counted)
    for beginning in (16 * "0", 16 * "f"):
        tails = [rng.bytes(24).hex() for _ in range(1000)]
        prints = [beginning + tail for tail in (*tails, *tails[:3])]
        copies = {1000: 0, 1001: 1, 1002: 2}
        assert near_duplicates(prints) == near_duplicates([f"-{each}" for each in prints]) == copies
    assert compared[0] < 1000


def test_what_cannot_be_told_from_others_has_none():
    assert print_of(np.zeros((1, 10 * RATE), np.float32)) == print_of(noisy(0, 1)) == ""


def test_the_earliest_stays():
    first, second = print_of(noisy(0)), print_of(noisy(1))
    assert near_duplicates([first, second, first, "", second, first]) == {2: 0, 4: 1, 5: 0}


def scene(seed, seconds=5, size=64):
    """(n, 3, size, size) at five per second: coloured clouds that drift, and change their shape half-way."""
    rng, count = np.random.default_rng(seed), 5 * seconds
    y, x = np.mgrid[0:size, 0:size] / size
    pictures = np.zeros((count, 3, size, size))
    for _ in range(12):
        wave, place, colour = rng.uniform(-3, 3, 2), rng.uniform(0, 2 * np.pi), rng.uniform(0, 40, 3)
        drift, begin = rng.uniform(-0.3, 0.3), rng.integers(0, 2) * count // 2
        for i in range(begin, count):
            cloud = np.cos(2 * np.pi * (wave[0] * x + wave[1] * y) + place + drift * i / 5)
            pictures[i] += colour[:, None, None] * cloud
    return np.clip(128 + pictures, 0, 255).astype(np.uint8)


def look_of(pictures):
    return picture_fingerprint([low_frequencies(pictures[i : i + 5]) for i in range(0, len(pictures), 5)])


VIEWS = {
    "darker": lambda pictures: (0.6 * pictures).astype(np.uint8),
    "noise": lambda pictures: np.clip(pictures + np.random.default_rng(9).normal(0, 8, pictures.shape), 0, 255).astype(
        np.uint8
    ),
    "smaller": lambda pictures: pictures[:, :, ::2, ::2].repeat(2, axis=2).repeat(2, axis=3),
    "later": lambda pictures: np.concatenate([pictures[:1], pictures[:-1]]),  # 200 ms
}


@pytest.mark.parametrize("view", VIEWS)
def test_the_same_pictures_are_found(view):
    scenes = [scene(seed) for seed in range(COUNT)]
    prints = [f"-{look_of(pictures)}" for pictures in scenes]
    found = near_duplicates(prints + [f"-{look_of(VIEWS[view](pictures))}" for pictures in scenes])
    assert len(found) >= COUNT - 2 and all(later == COUNT + earlier for later, earlier in found.items())
    assert near_duplicates(prints) == {}


def test_pictures_that_show_nothing_have_none():
    for grey in (0, 90, 255):
        assert look_of(np.full((25, 3, 64, 64), grey, np.uint8)) == ""
    assert look_of(scene(0)[:3]) == ""
    assert picture_fingerprint([]) == ""


def test_films_resemble_each_other_by_sound_and_pictures():
    one, other = print_of(noisy(0)), print_of(noisy(1))
    here, there = look_of(scene(0)), look_of(scene(1))
    assert near_duplicates([f"{one}-{here}", f"{one}-{there}", f"{other}-{here}", f"{one}-{here}"]) == {3: 0}
    assert near_duplicates([f"{one}-{here}", f"{one}-", f"-{here}", f"{one}-", "-", ""]) == {3: 1}


@pytest.mark.slow
def test_a_manifest(tmp_path, forkserver):
    """An mp3 of a recording, and the same once more by another name."""
    for seed in range(3):
        soundfile.write(tmp_path / f"{seed}.flac", noisy(seed)[0], RATE)
    encode(tmp_path / "1.mp3", "libmp3lame", noisy(1), RATE)
    (tmp_path / "copy.flac").write_bytes((tmp_path / "2.flac").read_bytes())
    path = manifest(tmp_path, *({"audio": name} for name in ("0.flac", "1.flac", "1.mp3", "2.flac", "copy.flac")))
    out = tmp_path / "kept.jsonl"
    summary = filter_manifest(path, out, LineFilters(), StageWorkers(2), duplicates=False)
    assert summary.left_out == {"near duplicate": 2} and summary.kept_seconds == pytest.approx(30.0)
    left_out = (tmp_path / "kept.jsonl.left_out.jsonl").read_text()
    assert "resembles line 2" in left_out and "resembles line 4" in left_out
    assert filter_manifest(path, tmp_path / "all.jsonl", LineFilters(), StageWorkers(2)).kept_lines == 5


@pytest.mark.slow
def test_films(tmp_path, forkserver):
    """The same film again in another codec, with other pictures, and with another sound."""
    sounds = [soxr.resample(noisy(seed, 4)[0], RATE, 44100) for seed in range(2)]
    shows = [np.kron(scene(seed, 4), np.ones((1, 1, 2, 2), np.uint8)) for seed in range(2)]
    shown_film(tmp_path / "first.mp4", shows[0], sounds[0])
    shown_film(tmp_path / "again.mkv", VIEWS["darker"](shows[0]), 0.5 * sounds[0], "libx264")
    shown_film(tmp_path / "looks.mp4", shows[1], sounds[0])
    shown_film(tmp_path / "sounds.mp4", shows[0], sounds[1])
    names = ("first.mp4", "again.mkv", "looks.mp4", "sounds.mp4")
    path = manifest(tmp_path, *({"video": name} for name in names))
    summary = filter_manifest(path, tmp_path / "kept.jsonl", LineFilters(), StageWorkers(2), duplicates=False)
    assert summary.left_out == {"near duplicate": 1}
    assert '"audio": "again.mkv"' in (tmp_path / "kept.jsonl.left_out.jsonl").read_text()
