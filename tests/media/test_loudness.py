"""Loudness by BS.1770, on the signals of EBU Tech 3341."""

import numpy as np
import pytest

from audiox_trainer.trainer.media.loudness import SILENT, integrated_loudness, normalize_loudness

RATE = 48_000


def tone(*parts, channels=2, rate=RATE, frequency=1000.0):
    """A sine of some (dBFS, seconds), one after the other."""
    pieces = []
    for level, seconds in parts:
        t = np.arange(round(seconds * rate)) / rate
        pieces.append(10 ** (level / 20) * np.sin(2 * np.pi * frequency * t))
    return np.tile(np.concatenate(pieces), (channels, 1)).astype(np.float32)


@pytest.mark.parametrize(
    ("wave", "expected"),
    [
        (tone((-23, 20)), -23),  # case 1
        (tone((-33, 20)), -33),  # case 2
        (tone((-36, 10), (-23, 60), (-36, 10)), -23),  # case 3: what is 10 LU quieter does not count
        (tone((-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)), -23),  # case 4
        (tone((-26, 20), (-20, 20.1), (-26, 20)), -23),  # case 5
        (tone((-23, 20), channels=1), -26.01),
    ],
)
def test_test_signals_of_the_ebu(wave, expected):
    assert integrated_loudness(wave, RATE) == pytest.approx(expected, abs=0.1)


def test_short_and_silent_sounds_at_other_rates():
    assert integrated_loudness(tone((-23, 0.1), rate=16_000), 16_000) == pytest.approx(-23, abs=0.2)
    assert integrated_loudness(tone((-23, 2), rate=44_100), 44_100) == pytest.approx(-23, abs=0.1)
    silence = np.zeros((1, RATE), np.float32)
    assert integrated_loudness(silence, RATE) == SILENT
    assert normalize_loudness(silence, RATE, -23.0) is silence
    with pytest.raises(ValueError, match="loudness: a sound of 3 channels"):
        integrated_loudness(np.zeros((3, RATE), np.float32), RATE)


def test_a_sound_gets_the_loudness_that_is_asked_for_or_is_refused():
    noise = 0.01 * np.random.default_rng(0).standard_normal((1, 3 * RATE)).astype(np.float32)
    made = normalize_loudness(noise, RATE, -30.0)
    assert integrated_loudness(made, RATE) == pytest.approx(-30, abs=0.02)
    np.testing.assert_allclose(made / noise, (made / noise)[0, 0], rtol=1e-4)
    with pytest.raises(ValueError, match=r"at -1 LUFS the peaks .* clipped; it can have at most -\d+\.\d$"):
        normalize_loudness(noise, RATE, -1.0)
