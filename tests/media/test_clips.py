"""Decoding of sound: formats, rates, channels, cutting, and every kind of damage by its name."""

import os

import numpy as np
import pytest
import soundfile

from audiox_trainer.trainer.media.source import Reason
from tests.helpers.media_files import MONO, STEREO, clips_of, encode, peak_hertz, reason_of, sine


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("a.wav", "PCM_U8"),
        ("a.wav", "PCM_16"),
        ("a.wav", "PCM_24"),
        ("a.wav", "FLOAT"),
        ("a.wav", "DOUBLE"),
        ("a.flac", "PCM_16"),
        ("a.flac", "PCM_24"),
        ("a.ogg", "VORBIS"),
        ("a.mp3", "MPEG_LAYER_III"),
        ("a.aiff", "PCM_16"),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_formats(tmp_path, name, subtype, channels):
    wave = np.stack([sine()] * channels, axis=1)
    soundfile.write(tmp_path / name, wave, 44100, subtype=subtype)
    (clip,) = clips_of(tmp_path / name)
    assert clip.wave.shape == (1, 16384) and clip.wave.dtype == np.float32
    assert clip.start == 0 and clip.seconds == pytest.approx(1.0, abs=0.005)  # vorbis loses a block
    assert peak_hertz(clip.wave[0], 8000, 1.0) == 440
    assert np.abs(clip.wave[0, 2000:6000]).max() == pytest.approx(0.5, abs=0.02)
    assert not clip.wave[0, 8000:].any()


def test_aac_in_mp4(tmp_path):
    encode(tmp_path / "a.m4a", "aac", sine(), 44100)
    (clip,) = clips_of(tmp_path / "a.m4a")
    assert peak_hertz(clip.wave[0], 8000, 1.0) == 440


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("codec", [MONO, STEREO])
def test_resampling_keeps_pitch_and_level(tmp_path, rate, codec):
    soundfile.write(tmp_path / "a.wav", sine(1000, 0.4, rate), rate, subtype="FLOAT")
    (clip,) = clips_of(tmp_path / "a.wav", codec)
    assert clip.wave.shape == (codec.audio_channels, codec.samples)
    assert clip.seconds == pytest.approx(0.4, abs=2 / 8000)
    assert peak_hertz(clip.wave[0], codec.sample_rate, 0.4) == 1000
    middle = clip.wave[:, codec.sample_rate // 10 : codec.sample_rate // 5]
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.01)


def test_resampling_removes_what_the_lower_rate_cannot_hold(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(6000, 1, 44100), 44100)
    (clip,) = clips_of(tmp_path / "a.wav")
    assert np.abs(clip.wave[0, 500:7500]).max() < 1e-3


def test_channels(tmp_path):
    left, right = sine(300, 0.3), sine(700, 0.3)
    soundfile.write(tmp_path / "two.wav", np.stack((left, right), 1), 44100, subtype="FLOAT")
    soundfile.write(tmp_path / "one.wav", left, 44100, subtype="FLOAT")
    (both,) = clips_of(tmp_path / "two.wav", STEREO)
    np.testing.assert_array_equal(both.wave[:, : left.size], (left, right))
    (doubled,) = clips_of(tmp_path / "one.wav", STEREO)
    np.testing.assert_array_equal(doubled.wave[:, : left.size], (left, left))
    (mean,) = clips_of(tmp_path / "two.wav", MONO)
    (alone,) = clips_of(tmp_path / "one.wav", MONO)
    assert 0.4 < np.abs(mean.wave).max() < 0.51 and np.abs(alone.wave).max() > 0.49
    soundfile.write(tmp_path / "six.wav", np.stack([left] * 6, 1), 44100)
    (folded,) = clips_of(tmp_path / "six.wav", STEREO)
    assert peak_hertz(folded.wave[1], 44100, 0.3) == pytest.approx(300)


@pytest.mark.parametrize(
    ("seconds", "lengths"),
    [
        (0.01, [0.01]),  # alone, so it is kept however short
        (2.048, [2.048]),
        (2.1, [2.048]),  # 0.052 s are less than a tenth of a clip
        (2.3, [2.048, 0.252]),
        (4.096, [2.048, 2.048]),
        (5.0, [2.048, 2.048, 0.904]),
    ],
)
def test_cutting(tmp_path, seconds, lengths):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * 8000)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
    clips = clips_of(tmp_path / "a.wav")
    assert [clip.seconds for clip in clips] == pytest.approx(lengths)
    assert [clip.start for clip in clips] == pytest.approx([2.048 * i for i in range(len(clips))])
    for i, clip in enumerate(clips):
        part = wave[i * 16384 : (i + 1) * 16384]
        np.testing.assert_array_equal(clip.wave[0, : part.size], part)
        assert not clip.wave[0, part.size :].any()


def test_segments(tmp_path):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 8 * 8000).astype(np.float32)
    soundfile.write(tmp_path / "a.flac", wave, 8000)
    (clip,) = clips_of(tmp_path / "a.flac", start=3.0, end=4.5)
    assert clip.start == 0 and clip.seconds == 1.5
    np.testing.assert_allclose(clip.wave[0, :12000], wave[24000:36000], atol=1e-4)
    assert [c.seconds for c in clips_of(tmp_path / "a.flac", start=5.0)] == pytest.approx([2.048, 0.952])
    assert reason_of(tmp_path / "a.flac", start=8.5) is Reason.ZERO_LENGTH
    assert reason_of(tmp_path / "a.flac", start=3.0, end=9.0) is Reason.TRUNCATED
    assert [c.seconds for c in clips_of(tmp_path / "a.flac", start=6.5, end=9.0, sound_slack=1.5)] == [1.5]


def test_only_what_is_too_loud_is_scaled(tmp_path):
    soundfile.write(tmp_path / "loud.wav", sine(level=2.5, rate=8000), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "soft.wav", sine(level=0.003, rate=8000), 8000, subtype="FLOAT")
    (loud,), (soft,) = clips_of(tmp_path / "loud.wav"), clips_of(tmp_path / "soft.wav")
    assert np.abs(loud.wave).max() == 1.0
    assert np.abs(soft.wave).max() == pytest.approx(0.003, rel=1e-3) and soft.peak == pytest.approx(-50.5, abs=0.1)


def test_silence_is_marked(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(level=5e-5, rate=8000), 8000, subtype="FLOAT")
    assert clips_of(tmp_path / "a.wav")[0].peak < -80


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
def test_truncated(tmp_path, name, share):
    soundfile.write(tmp_path / name, sine(seconds=3), 44100)
    assert reason_of(cut(tmp_path / name, share)) is Reason.TRUNCATED


def test_a_flac_with_a_changed_byte(tmp_path):
    path = tmp_path / "a.flac"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 44100 * 2)
    soundfile.write(path, noise, 44100)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert reason_of(path) in (Reason.TRUNCATED, Reason.UNDECODABLE)


def test_a_wav_from_a_pipe_is_whole(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(rate=8000), 8000, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\xff"  # length not known
    path.write_bytes(data)
    assert clips_of(path)[0].seconds == 1.0


def test_what_is_no_sound(tmp_path):
    (tmp_path / "zero.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("This is not a sound.\n" * 50)
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(20_000))
    (tmp_path / "live.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 44100)
    soundfile.write(tmp_path / "nan.wav", np.full(8000, np.nan, np.float32), 8000, subtype="FLOAT")
    assert reason_of(tmp_path / "none.wav") is Reason.MISSING
    assert reason_of(tmp_path) is Reason.UNREADABLE
    assert reason_of(tmp_path / "zero.wav") is Reason.ZERO_LENGTH
    assert reason_of(tmp_path / "empty.wav") is Reason.ZERO_LENGTH
    assert reason_of(tmp_path / "text.wav") is Reason.UNDECODABLE
    assert reason_of(tmp_path / "noise.mp3") is Reason.UNDECODABLE
    assert reason_of(tmp_path / "nan.wav") is Reason.UNDECODABLE
    assert reason_of(tmp_path / "live.m3u8") is Reason.UNDECODABLE


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    assert reason_of(tmp_path / "pipe.wav") is Reason.UNREADABLE


def test_the_share_that_ran_into_full_scale_is_known(tmp_path):
    """A tone beyond full scale is cut flat in a 16-bit file; a tone at full scale is not, at another rate neither."""
    times = np.arange(2 * 48000) / 48000
    tone = np.sin(2 * np.pi * 440 * times)
    for name, level in (("cut.wav", 1.5), ("whole.wav", 1.0), ("low.wav", 0.5)):
        soundfile.write(tmp_path / name, np.clip(level * tone, -1, 1), 48000, subtype="PCM_16")

    def shares(name):
        return [clip.clipped for clip in clips_of(tmp_path / name)]

    flat = 1 - 2 * np.arcsin(1 / 1.5) / np.pi
    assert shares("cut.wav") == pytest.approx([flat] * len(shares("cut.wav")), abs=0.02)
    assert max(shares("whole.wav")) < 1e-3 and max(shares("low.wav")) == 0
