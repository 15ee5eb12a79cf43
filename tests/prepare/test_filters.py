"""Filters: what each leaves out and says, networks in TorchScript and ONNX, and the configuration's refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from audiox_trainer.trainer.core.config_reader import parse_file
from audiox_trainer.trainer.manifest.manifest import ManifestEntry
from audiox_trainer.trainer.media.clips import Clip
from audiox_trainer.trainer.prepare.encode import EncoderSettings, EntryTask, Rejection, encode_entry
from audiox_trainer.trainer.prepare.filter_networks import load_network, score_fault, scores, separate
from audiox_trainer.trainer.prepare.filters import (
    ClassifierConfig,
    FiltersConfig,
    SeparatorConfig,
    clip_fault,
    file_fault,
    silent_share,
)
from tests.helpers.preparation import MODEL, sound
from tests.helpers.small_config import ROOT

RATE = 8000
CPU = torch.device("cpu")


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


class Loudness(nn.Module):
    """(B, n) -> (B, 2): mean power, and its negative."""

    def forward(self, wave):
        power = wave.square().mean(dim=1)
        return torch.stack((power, -power), dim=1)


class Brightness(nn.Module):
    """(N, 3, size, size) -> (N, 1)"""

    def forward(self, pictures):
        return pictures.mean(dim=(1, 2, 3))[:, None]


class Stems(nn.Module):
    """(B, channels, n) -> (B, 2, channels, n): half of the sound, and nothing."""

    def forward(self, wave):
        return torch.stack((wave * 0.5, wave * 0), dim=1)


def saved(module, path, *shape):
    """The module as TorchScript or ONNX, by the ending."""
    if path.suffix == ".onnx":
        axis = len(shape) - 1
        torch.onnx.export(
            module,
            (torch.zeros(shape),),
            path,
            dynamo=False,
            input_names=["x"],
            dynamic_axes={"x": {0: "rows", axis: "n"}},
        )
    else:
        torch.jit.trace(module, torch.zeros(shape)).save(str(path))
    return str(path)


@pytest.fixture(scope="module", params=["ts", "onnx"])
def networks(request, tmp_path_factory):
    """Files of the three networks in one format; the judge of sound hears 16 kHz."""
    folder = tmp_path_factory.mktemp(request.param)
    ending = request.param
    return {
        "loud": saved(Loudness(), folder / f"loud.{ending}", 2, 32000),
        "bright": saved(Brightness(), folder / f"bright.{ending}", 2, 3, 8, 8),
        "stems": saved(Stems(), folder / f"stems.{ending}", 2, 2, 32000),
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of how the tests write networks
class TestNetworks:
    def test_sound_is_brought_to_the_rate_and_scored(self, networks):
        judge = ClassifierConfig("loud", networks["loud"], rate=16000, min_score=0.1)
        clips = [clip(wave=tone(level=level, channels=2)) for level in (0.2, 0.8, 0.6)]
        found = scores(judge, load_network(judge.file, CPU), clips, RATE)
        assert found == pytest.approx([0.02, 0.32, 0.18], rel=0.02)
        assert [bool(score_fault(judge, score)) for score in found] == [True, False, False]

    def test_pictures_are_scaled_and_their_mean_counts(self, networks):
        judge = ClassifierConfig("bright", networks["bright"], input="video", size=8, max_score=0.6)
        pictures = np.full((4, 3, 16, 16), 51)
        pictures[2:] = 255
        found = scores(judge, load_network(judge.file, CPU), [clip(images=pictures), clip()], RATE)
        assert found == [pytest.approx(0.6), None]
        assert score_fault(judge, 0.61) == ("classifier bright", "0.610, more than 0.6")
        assert score_fault(judge, None) is None

    def test_a_stem_takes_the_sounds_place(self, networks):
        separator = SeparatorConfig(networks["stems"], rate=16000)
        wave = np.concatenate((tone(1.5), np.zeros((1, 4000), np.float32)), axis=1)
        (found,) = separate(separator, load_network(separator.file, CPU), [clip(wave=wave, seconds=1.5)], RATE)
        assert found.wave.shape == wave.shape and found.wave.dtype == np.float32
        np.testing.assert_allclose(found.wave[:, 100:11900], 0.5 * wave[:, 100:11900], atol=2e-3)
        assert not found.wave[:, 12000:].any(), "padding"

    def test_what_is_not_as_declared(self, networks):
        judge = ClassifierConfig("loud", networks["loud"], rate=16000, column=2, min_score=0.0)
        with pytest.raises(ValueError, match=r"gives \(1, 2\) for 1 rows; expected .* with column 2"):
            scores(judge, load_network(judge.file, CPU), [clip()], RATE)
        judge = replace(judge, file=networks["bright"])
        with pytest.raises(ValueError, match=r"bright\.\w+: does not accept float32 \(1, 32000\) \("):
            scores(judge, load_network(judge.file, CPU), [clip()], RATE)
        separator = SeparatorConfig(networks["stems"], rate=16000, stem=2)
        with pytest.raises(ValueError, match=r"gives \(1, 2, 2, 32000\) for \(1, 2, 32000\); .* with stem 2"):
            separate(separator, load_network(separator.file, CPU), [clip()], RATE)

    def test_all_in_a_file(self, networks, tmp_path):
        """A quiet, a loud and a silenced clip of one file, each with its reason or its score."""
        parts = [tone(2.048, level=level) for level in (0.1, 0.6, 0.2)]
        path = tmp_path / "a.wav"
        sound(path, wave=np.concatenate(parts, axis=1)[0])
        judge = ClassifierConfig("loud", networks["loud"], rate=16000, min_score=0.01)
        separator = SeparatorConfig(networks["stems"], rate=16000, domains=("audio",))
        filters = FiltersConfig(classifiers=(judge,), separator=separator, max_silent=0.5, silence_level=-20.0)
        entry = ManifestEntry(7, "a.wav", path, None, "audio", 0.0, None)
        found = list(encode_entry(EntryTask(EncoderSettings(MODEL.codec, MODEL.video, filters), entry)))
        assert [(r.reason, r.start) for piece in found for r in piece.rejections] == [
            ("mostly silent", 0.0),
            ("mostly silent", pytest.approx(4.096)),
        ]
        ((kept,),) = [piece.clips for piece in found]
        assert kept.start == pytest.approx(2.048) and kept.scores == {"loud": pytest.approx(0.18, rel=0.02)}


def test_a_long_file_is_left_at_once(tmp_path):
    sound(tmp_path / "a.wav", 60.0)
    entry = ManifestEntry(1, "a.wav", tmp_path / "a.wav", None, "audio", 0.0, None)
    filters = FiltersConfig(max_file_seconds=20.0)
    *before, last = encode_entry(EntryTask(EncoderSettings(MODEL.codec, MODEL.video, filters), entry))
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
        (
            {"classifiers": [{"name": "a", "file": "a.ts", "min_score": 0}]},
            r"classifiers\[0\]\.rate: 0; audio needs it above",
        ),
        ({"classifiers": [{"name": "a", "file": "a.ts", "rate": 8000}]}, r"classifiers\[0\]\.min_score: missing"),
        (
            {"classifiers": [{"name": "a", "file": "a.ts", "input": "video", "size": 9, "rate": 8, "max_score": 1}]},
            r"classifiers\[0\]\.size: 9; video needs it above 0, and no rate",
        ),
        (
            {"classifiers": [{"name": "a", "file": "a.ts", "rate": 8000, "min_score": 0, "domains": ["speech"]}]},
            r"classifiers\[0\]\.domains\[0\]: 'speech' is not allowed; expected 'audio' or 'music'",
        ),
        ({"separator": {"file": "a.ts", "rate": 44100, "channels": 3}}, r"separator\.channels: 3 is not allowed"),
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


@pytest.mark.parametrize("name", ["a.onnx", "a.ts"])
def test_a_file_that_is_no_network(tmp_path, name):
    with pytest.raises(ValueError, match="no such file"):
        load_network(str(tmp_path / name), CPU)
    (tmp_path / name).write_bytes(b"not a network")
    with pytest.raises(ValueError, match=f"{name}: not a network in "):
        load_network(str(tmp_path / name), CPU)
