"""The limits for clips: what each leaves out and says, and the configuration's refusals."""

import json

import numpy as np
import pytest

from audiox_trainer.trainer.core.config_reader import parse_file
from audiox_trainer.trainer.manifest.manifest import ManifestEntry
from audiox_trainer.trainer.media.clips import Clip
from audiox_trainer.trainer.prepare.decode import EncoderSettings, EntryTask, Rejection, decode_entry
from audiox_trainer.trainer.prepare.filters import FiltersConfig, clip_fault, file_fault, silent_share
from tests.helpers.preparation import MODEL, sound
from tests.helpers.small_config import ROOT

RATE = 8000


def tone(seconds=2.0, hertz=440.0, level=0.5, channels=1):
    wave = level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    return np.repeat(wave[None].astype(np.float32), channels, axis=0)


def clip(wave=None, seconds=2.0, images=(), clipped=0.0, start=0.0):
    pictures = np.asarray(images, np.uint8) if len(images) else np.empty((0, 3, 16, 16), np.uint8)
    return Clip(start, seconds, tone() if wave is None else wave, pictures, pictures, clipped)


def reason(filters, **what):
    fault = clip_fault(clip(**what), RATE, filters)
    return fault and str(fault[0])


def moving(steps, still):
    """Images of which the first `still` + 1 are the same."""
    pictures = np.random.default_rng(0).integers(0, 255, (steps + 1, 3, 16, 16))
    pictures[: still + 1] = pictures[0]
    return pictures


class TestLimits:
    def test_open_filters_keep_everything_that_sounds(self):
        filters = FiltersConfig()
        assert reason(filters) is None
        assert reason(filters, clipped=1.0, images=moving(9, 9)) is None
        assert reason(filters, wave=tone(level=5e-5)) == "silent"
        assert reason(FiltersConfig(min_peak=-100.0), wave=tone(level=5e-5)) is None
        assert reason(FiltersConfig(min_peak=-5.0), wave=tone(level=0.5)) == "silent"

    def test_short_clips(self):
        assert reason(FiltersConfig(min_clip_seconds=1.5), seconds=1.4) == "short clip"
        assert reason(FiltersConfig(min_clip_seconds=1.5), seconds=1.5) is None

    def test_clipping(self):
        assert reason(FiltersConfig(max_clipped=0.01), clipped=0.02) == "clipping"
        assert reason(FiltersConfig(max_clipped=0.01), clipped=0.01) is None

    def test_silence(self):
        wave = tone()
        wave[:, : wave.shape[1] // 2] *= 1e-4
        assert silent_share(wave, RATE, -60.0) == pytest.approx(0.5)
        assert silent_share(wave, RATE, -100.0) == 0
        assert reason(FiltersConfig(max_silent=0.4), wave=wave) == "mostly silent"
        assert reason(FiltersConfig(max_silent=0.6), wave=wave) is None
        assert silent_share(wave[:, :7], RATE, -60.0) == 1, "shorter than a window"

    def test_padding_is_no_silence(self):
        wave = np.concatenate((tone(0.5), np.zeros((1, 12000), np.float32)), axis=1)
        assert reason(FiltersConfig(max_silent=0.1), wave=wave, seconds=0.5) is None

    def test_a_picture_that_stands_still(self):
        filters = FiltersConfig(max_static=0.5)
        assert reason(filters, images=moving(10, 6)) == "static video"
        assert reason(filters, images=moving(10, 5)) is None
        assert reason(filters, images=moving(10, 10)[:1]) is None, "one image says nothing"
        assert reason(filters) is None, "no video"

    @pytest.mark.parametrize(
        ("seconds", "ended", "expected"),
        [
            (0.9, True, "short file"),
            (0.9, False, None),
            (1.0, True, None),
            (20.5, False, "long file"),
            (20, True, None),
        ],
    )
    def test_files(self, seconds, ended, expected):
        fault = file_fault(seconds, ended, FiltersConfig(min_file_seconds=1.0, max_file_seconds=20.0))
        assert (fault and fault[0]) == expected


def test_a_long_file_is_left_at_once(tmp_path):
    sound(tmp_path / "a.wav", 60.0)
    entry = ManifestEntry(1, "a.wav", tmp_path / "a.wav", None, "audio", 0.0, None)
    filters = FiltersConfig(max_file_seconds=20.0)
    *before, last = decode_entry(EntryTask(EncoderSettings(MODEL.codec, MODEL.video, filters), entry))
    assert len(before) == 2 and isinstance(last, Rejection)
    assert (last.reason, last.start, last.detail) == ("long file", None, "longer than 20 s")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"silnt": 0.5}, "silnt: unknown key"),
        ({"max_silent": 1.5}, "max_silent: 1.5 must be at most 1"),
        ({"silence": -60}, "silence: is called silence_level now"),
        ({"min_file_seconds": -1}, r"min_file_seconds: -1 must be at least 0"),
        (
            {"min_file_seconds": 5, "max_file_seconds": 4},
            r"max_file_seconds: 4\.0 must be above min_file_seconds, 5\.0",
        ),
        ({"scorers": []}, r"scorers: unknown key"),
    ],
)
def test_a_configuration_that_cannot_be(tmp_path, changes, message):
    (tmp_path / "filters.json").write_text(json.dumps(changes))
    with pytest.raises(ValueError, match=rf"filters\.json: {message}"):
        parse_file(FiltersConfig, tmp_path / "filters.json", ())


def test_the_configuration_that_comes_along():
    filters = parse_file(FiltersConfig, ROOT / "configs/filters.json", ())
    assert (
        filters.max_static < 1 and filters.max_silent < 1 and filters.max_clipped < 1 and filters.max_file_seconds > 0
    )
