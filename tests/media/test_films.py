"""Decoding of pictures, alone and with sound: which frame, where sound begins, what is missing."""

import av
import numpy as np
import pytest
import soundfile

from audiox_trainer.models.config import VideoConfig
from audiox_trainer.trainer.media import audio_decode, source
from audiox_trainer.trainer.media.clips import frames_in, read_clips
from audiox_trainer.trainer.media.source import MediaError, Reason
from tests.helpers.media_files import (
    CODED,
    FRAMES,
    MONO,
    STEREO,
    clips_of,
    encode,
    film,
    number_of,
    numbered_film,
    reason_of,
    sine,
    warble,
)


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
    with pytest.raises(MediaError, match=r"the pictures end at 0\.40 s, the sound at 2\.00 s") as caught:
        clips_of(tmp_path / "a.wav", video=short)
    assert caught.value.reason is Reason.TRUNCATED
    (whole,) = clips_of(tmp_path / "a.wav", video=short, video_slack=2.0)
    assert np.array_equal(whole.images[-1], whole.images[len(whole.images) // 2]), "the last picture stands on"


def test_frames_in_a_clip():
    assert frames_in(2.048, 15.625) == 32
    assert frames_in(2.048, 7.8125) == 16
    assert frames_in(440320 / 44100, 5) == 50
    assert frames_in(440320 / 44100, 25) == 250


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
    with pytest.raises(MediaError, match=r"the pictures begin at 2\.0\d s, the segment at 0\.\d\d s") as caught:
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
    converted = audio_decode._Track.converted
    monkeypatch.setattr(audio_decode._Track, "converted", lambda *a: decoded.append(1) or converted(*a))
    begins = (0.7, 5.013, 9.9)

    def read():
        decoded.clear()
        return [next(read_clips(path, None, STEREO, FRAMES, begin, begin + 0.4)).wave[0] for begin in begins]

    quick, few = read(), len(decoded)
    monkeypatch.setattr(source, "_SEEKABLE", set())
    monkeypatch.setattr(audio_decode, "PREROLL", 99)
    slow = read()
    assert few < 0.7 * len(decoded), "what lies far before a segment is not decoded"
    for one, other in zip(quick, slow, strict=True):
        if exact is None:
            lags = [np.abs(one[50 + lag : 15_000 + lag] - other[50:15_000]).max() for lag in range(-45, 46)]
            assert min(lags) < 1e-4, "the same sound, at most a millisecond off"
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
