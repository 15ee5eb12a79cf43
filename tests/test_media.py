"""Decoding: formats, rates, channels, cutting, video frames, and every kind of damage by its name."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from audiox_turbo.models.config import CodecConfig, VideoConfig
from audiox_turbo.trainer.data import sound, source
from audiox_turbo.trainer.data.media import frames_in, read_clips
from audiox_turbo.trainer.data.source import MediaError, Reason
from tests.media_files import CODED, encode, film, number_of, numbered_film, peak_hertz, sine, warble

MONO = CodecConfig("logmel", sample_rate=8000, audio_channels=1, hop=512, frames=32, channels=128)
STEREO = CodecConfig("oobleck", sample_rate=44100, audio_channels=2, hop=2048, frames=10, channels=64)
FRAMES = VideoConfig("frames", dim=64, image_rate=5.0, motion_rate=12.5, size=16, steps=32, pool=2)


def clips_of(path, codec=MONO, video=None, **segment):
    return list(read_clips(Path(path), video, codec, FRAMES, **segment))


def reason_of(path, **arguments):
    with pytest.raises(MediaError) as caught:
        clips_of(path, **arguments)
    assert str(path) in str(caught.value)
    return caught.value.reason


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


def test_only_what_is_too_loud_is_scaled(tmp_path):
    soundfile.write(tmp_path / "loud.wav", sine(level=2.5, rate=8000), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "soft.wav", sine(level=0.003, rate=8000), 8000, subtype="FLOAT")
    (loud,), (soft,) = clips_of(tmp_path / "loud.wav"), clips_of(tmp_path / "soft.wav")
    assert np.abs(loud.wave).max() == 1.0
    assert np.abs(soft.wave).max() == pytest.approx(0.003, rel=1e-3) and not soft.silent


def test_silence_is_marked(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(level=5e-5, rate=8000), 8000, subtype="FLOAT")
    assert clips_of(tmp_path / "a.wav")[0].silent


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


def test_frames_are_picked_by_time(tmp_path):
    path = film(tmp_path / "a.mp4", 2.4, sound=sine(seconds=2.4))
    first, second = clips_of(path, video=path)
    assert first.images.shape == (11, 3, 16, 16) and first.motion.shape == (26, 3, 16, 16)
    assert first.images.dtype == np.uint8
    brightness = first.motion.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(brightness, [8 * i for i in range(26)], atol=4)  # every second of 25 frames a second
    np.testing.assert_allclose(first.images.mean(axis=(1, 2, 3)), [20 * i for i in range(11)], atol=4)
    # The second clip starts at 2.048 s, between frames 51 and 52; after the last frame (59) it stays as it is.
    np.testing.assert_allclose(second.motion.mean(axis=(1, 2, 3))[[0, -1]], [4 * 51, 4 * 59], atol=4)


def test_pictures_from_another_file_and_a_segment(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(seconds=2), 44100)
    path = film(tmp_path / "a.mp4", 2)
    (clip,) = clips_of(tmp_path / "a.wav", video=path, start=1.0, end=1.5)
    np.testing.assert_allclose(clip.images.mean(axis=(1, 2, 3))[:3], [100, 120, 140], atol=4)


def test_pictures_keep_their_proportions(tmp_path):
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[16:48, 48:80] = 255  # a square in the middle
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "bgr0"
        for _ in range(25):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    soundfile.write(tmp_path / "a.wav", sine(), 44100)
    (clip,) = clips_of(tmp_path / "a.wav", video=path)
    bright = clip.images[0, 0] > 127
    assert bright.sum() == 64 and bright[4:12, 4:12].all()


def test_video_damage(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(seconds=2), 44100)
    (tmp_path / "text.mp4").write_text("no film\n" * 100)
    for name, reason in (("none.mp4", Reason.MISSING), ("text.mp4", Reason.UNDECODABLE), ("a.wav", Reason.NO_VIDEO)):
        with pytest.raises(MediaError, match=name) as caught:
            clips_of(tmp_path / "a.wav", video=tmp_path / name)
        assert caught.value.reason is reason
    silent = film(tmp_path / "mute.mp4", 2)
    assert reason_of(silent) is Reason.NO_AUDIO
    assert reason_of(silent, video=silent) is Reason.NO_AUDIO
    short = film(tmp_path / "short.mp4", 0.4)
    with pytest.raises(MediaError, match=r"the pictures end at 0\.40 s, the sound goes on to 2\.00 s") as caught:
        clips_of(tmp_path / "a.wav", video=short)
    assert caught.value.reason is Reason.TRUNCATED


def test_frames_in_a_clip():
    assert frames_in(2.048, 15.625) == 32
    assert frames_in(2.048, 7.8125) == 16
    assert frames_in(440320 / 44100, 5) == 50
    assert frames_in(440320 / 44100, 25) == 250


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


SEEN = VideoConfig("frames", dim=64, image_rate=5.0, motion_rate=25.0, size=CODED, steps=32, pool=2)
EVEN = [i / 25 for i in range(150)]


def shown(clip):
    return [number_of(picture) for picture in clip.motion]


@pytest.mark.parametrize(("late", "early"), [(0.5, 0.0), (0.0, 0.4)])
def test_sound_and_pictures_of_one_file_keep_their_distance(tmp_path, late, early):
    """Sound that begins `late` has silence before it; pictures that do have their first one."""
    path = numbered_film(
        tmp_path / "a.mkv", [early + t for t in EVEN], sound=[(late, sine(seconds=6))], sound_codec="pcm_s16le"
    )
    clip, second = list(read_clips(path, path, MONO, SEEN, end=4.1))[:2]
    assert shown(clip) == [max(0, round((i / 25 - early) * 25)) for i in range(52)]
    silent = np.abs(clip.wave[0, : max(0, round(late * 8000) - 80)])
    assert silent.max(initial=0) < 1e-3 and np.abs(clip.wave[0, round(late * 8000) + 400 :][:800]).max() > 0.4
    assert second.start == pytest.approx(2.048) and shown(second)[0] == round((2.048 - early) * 25)


def test_sound_and_pictures_of_two_files_begin_together(tmp_path):
    pictures = numbered_film(tmp_path / "b.ts", [1.4 + t for t in EVEN], "mpeg2video")
    encode(tmp_path / "a.ts", "mp2", sine(seconds=6), 44100)
    (clip,) = read_clips(tmp_path / "a.ts", pictures, MONO, SEEN, end=2.0)
    assert shown(clip) == list(range(52)) and np.abs(clip.wave[0, 400:800]).max() > 0.4


def test_sound_with_a_still_picture(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(seconds=5), 44100)
    still = numbered_film(tmp_path / "a.mp4", [0.0])
    for segment in ({}, {"start": 3.0}):
        for clip in read_clips(tmp_path / "a.wav", still, MONO, SEEN, **segment):
            assert shown(clip) == [0] * 52


def test_pictures_that_are_missing_at_the_beginning(tmp_path):
    path = numbered_film(tmp_path / "a.mkv", [2.0 + t for t in EVEN], sound=[(0.0, sine(seconds=6))])
    with pytest.raises(MediaError, match=r"the pictures begin at 2\.0\d s, asked for from 0\.\d\d s on") as caught:
        list(read_clips(path, path, MONO, SEEN))
    assert caught.value.reason is Reason.TRUNCATED
    assert shown(next(read_clips(path, path, MONO, SEEN, start=2.02)))[:10] == list(range(10))


@pytest.mark.parametrize(
    ("name", "codec", "rate", "exact"),
    [
        ("a.mp4", "aac", 44100, 1e-5),
        ("a.mp4", "ac3", 48000, 1e-3),
        ("a.mp4", "libmp3lame", 44100, 1e-5),
        ("a.mov", "alac", 44100, 0),
        ("a.ts", "aac", 44100, 1e-5),
        ("a.ogg", "libopus", 48000, 1e-5),
        ("a.webm", "libopus", 48000, 1e-5),
        ("a.mkv", "aac", 44100, None),  # time stamps rounded to milliseconds
        ("a.flac", "flac", 44100, 0),
        ("a.wav", "pcm_s16le", 44100, 0),
        ("a.aiff", "pcm_s16be", 44100, 0),
        ("a.mp3", "libmp3lame", 44100, 1e-5),
        ("a.aac", "aac", 44100, 1e-4),
        ("a.avi", "mp2", 44100, 1e-4),
    ],
)
def test_a_segment_is_what_decoding_everything_gives(tmp_path, monkeypatch, name, codec, rate, exact):
    path = tmp_path / name
    encode(path, codec, warble(12, rate), rate)
    decoded = []
    converted = sound._Track.converted
    monkeypatch.setattr(sound._Track, "converted", lambda *a: decoded.append(1) or converted(*a))
    begins = (0.7, 5.013, 9.9)

    def read():
        decoded.clear()
        return [next(read_clips(path, None, STEREO, FRAMES, begin, begin + 0.4)).wave[0] for begin in begins]

    quick, few = read(), len(decoded)
    monkeypatch.setattr(source, "_SEEKABLE", set())
    monkeypatch.setattr(sound, "PREROLL", 99)
    slow = read()
    assert few < 0.7 * len(decoded), "what lies far before a segment is not decoded"
    for one, other in zip(quick, slow, strict=True):
        if exact is None:
            lags = [np.abs(one[50 + lag : 15_000 + lag] - other[50:15_000]).max() for lag in range(-45, 46)]
            assert min(lags) < 1e-4, "the same sound, at most a millisecond beside it"
        else:
            assert np.abs(one - other).max() <= exact


def test_sound_that_is_missing_beside_pictures(tmp_path):
    """Everything after it would be heard too early."""
    parts = [(0.0, sine(seconds=3)), (3.4, sine(seconds=2.6))]
    path = numbered_film(tmp_path / "a.mkv", EVEN, sound=parts, sound_codec="pcm_s16le")
    with pytest.raises(MediaError, match=r"time stamps of the sound jump from 3\.00 s to 3\.40 s") as caught:
        list(read_clips(path, path, MONO, SEEN))
    assert caught.value.reason is Reason.GAP
    assert list(read_clips(path, path, MONO, SEEN, end=2.5)), "before it, nothing is missing"
    after = next(read_clips(path, path, MONO, SEEN, start=4.0))
    assert shown(after)[0] == 100
    assert len(list(read_clips(path, None, MONO, SEEN))) == 3, "sound alone is taken as it is"


def test_more_threads_give_the_same_pictures(tmp_path):
    path = numbered_film(tmp_path / "a.mp4", EVEN, sound=[(0.0, sine(seconds=6))])
    one, two = (list(read_clips(path, path, MONO, SEEN, threads=threads)) for threads in (1, 2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.motion, b.motion)
        np.testing.assert_array_equal(a.wave, b.wave)
