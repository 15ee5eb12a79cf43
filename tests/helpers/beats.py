"""Real sound for tests: beats of recorded drum strokes, and films whose pictures change with them."""

from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr

from tests.helpers.media_files import numbered_film

RATE = 44100
STROKES = sorted((Path(__file__).parent / "strokes").glob("*.flac"))


@cache
def stroke(number: int) -> np.ndarray:
    """(n,) at RATE."""
    wave, rate = soundfile.read(STROKES[number % len(STROKES)], dtype="float32")
    return soxr.resample(wave, rate, RATE)


def stroke_times(seed: int, seconds: float) -> np.ndarray:
    """Seconds at which strokes begin."""
    return np.cumsum(np.random.default_rng(seed).uniform(0.25, 0.6, round(4 * seconds)))[: round(2 * seconds)]


def beat(seed: int, seconds: float, kit: int = 0) -> np.ndarray:
    """(n,) at RATE: strokes of a kit at the times of `seed`."""
    wave = np.zeros(round((seconds + 2) * RATE), np.float32)
    for i, time in enumerate(stroke_times(seed, seconds)):
        if time < seconds:
            piece, begin = stroke(seed + kit + i), round(time * RATE)
            wave[begin : begin + piece.size] += 0.6 * piece[: wave.size - begin]
    return np.clip(wave[: round(seconds * RATE)], -1, 1)


def film_of_beat(path: Path, seed: int, seconds: float) -> Path:
    """Its picture changes at every stroke."""
    times = [time for time in stroke_times(seed, seconds) if time < seconds]
    ends = sorted({0.0, *(round(25 * time) / 25 for time in times), round(25 * seconds) / 25 - 0.04})
    return numbered_film(path, ends, "mpeg4", sound=[(0.0, beat(seed, seconds))])
