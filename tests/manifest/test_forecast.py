"""What work on a manifest will cost is known before it begins."""

import pytest

from audiox_trainer.trainer.manifest.forecast import forecast
from audiox_trainer.trainer.manifest.prices import Price, Usage
from tests.helpers.preparation import manifest, sound


def asked(entry):
    return Usage(requests=2, read=100.0, written=10.0)


def test_by_what_the_manifest_says(tmp_path):
    path = manifest(tmp_path, {"audio": "a.wav", "start": 10, "end": 40}, {"audio": "b.wav", "end": 6})
    price = Price(per_input=1e6, per_output=2e6, audio_tokens=5.0)
    found = forecast(path, 2, asked, price)
    assert (found.seconds, found.guessed, found.questions) == (36.0, False, 4)
    assert found.read == 200 + 5 * 2 * 36 and found.written == 20 and found.money == found.read + 2 * 20
    assert str(found).startswith("2 lines, 0.01 h of sound; at most 4 questions: about 0.001 M tokens to read")
    assert str(forecast(path, 2)) == "2 lines, 0.01 h of sound"


@pytest.mark.slow
def test_by_the_headers_of_files(tmp_path):
    """Those that are missing or no sound are left to the work itself."""
    for seconds in (3.0, 5.0):
        sound(tmp_path / f"{seconds:g}.wav", seconds)
    (tmp_path / "text.wav").write_text("no sound")
    names = ("3.wav", "text.wav", "5.wav", "none.wav", "https://host/a.wav")
    path = manifest(tmp_path, *({"audio": name} for name in names), {"audio": "3.wav", "end": 1.0})
    found = forecast(path, 6, asked, Price(audio_tokens=1.0), longest=60.0)
    assert found.guessed and found.seconds == pytest.approx(1.0 + 5 * 4.0)
    heard = 1.0 + 3.0 + 5.0 + 3 * 60.0  # those that do not say it may be as long as anything that is asked about
    assert found.read == pytest.approx(600 + 2 * heard) and str(found).startswith("6 lines, about 0.01 h")
    (tmp_path / "other").mkdir()
    unknown = forecast(manifest(tmp_path / "other", {"audio": "none.wav"}), 1)
    assert str(unknown) == "1 line, of unknown length"


@pytest.mark.slow
def test_a_sample_is_of_lines_that_do_not_say_it(tmp_path):
    """Wherever they stand: here never where every second line would be looked at."""
    sound(tmp_path / "a.wav", 4.0)
    path = manifest(tmp_path, *({"audio": "a.wav", "end": 1.0}, {"audio": "a.wav"}) * 50)
    assert forecast(path, 100).seconds == pytest.approx(50 * 1.0 + 50 * 4.0)


def test_prices_and_limits_that_cannot_be():
    for numbers, message in (
        ((float("nan"), 1.0), "--price nan: must be a finite number, 0 or more"),
        ((1.0, -2.0), "--price -2: must be"),
        ((1.0, 1.0, float("inf")), "--audio-tokens inf: must be"),
    ):
        with pytest.raises(ValueError, match=message):
            Price(*numbers)
    for limit in (float("nan"), -1.0):
        with pytest.raises(ValueError, match=f"--at-most {limit:g}: must be a finite number, 0 or more"):
            Price(1.0, 1.0).check_limit(limit)
    with pytest.raises(ValueError, match="--at-most 5: without a price nothing is above it; give --price IN OUT"):
        Price().check_limit(5.0)
    Price().check_limit(None)
    Price(0.0, 1.0).check_limit(0.0)


def test_wrong_lines_are_named(tmp_path):
    with pytest.raises(ValueError, match="captoins"):
        forecast(manifest(tmp_path, {"audio": "a.wav", "captoins": []}), 1)
