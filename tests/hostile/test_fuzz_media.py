"""Media that are nearly right: each is refused with a reason, or gives bounded, finite clips."""

import numpy as np
import pytest
import soundfile
from hypothesis import strategies as st
from PIL import Image

from audiox_trainer.trainer.manifest.manifest import ManifestEntry
from audiox_trainer.trainer.media.source import Reason
from audiox_trainer.trainer.prepare.decode import EncoderSettings, EntryTask, Rejection, decode_entry
from tests.helpers.fuzzing import both, changed_bytes
from tests.helpers.media_files import FRAMES, MONO, encode, numbered_film, sine

RATE = 8000
MOST_CLIPS = 400  # that a file of some kB may give: ten minutes of silence before its sound are 300
SOUNDS = {"wav": None, "flac": None, "ogg": None, "aiff": None, "mp3": "libmp3lame", "m4a": "aac", "wv": "wavpack"}
FILMS = {"mp4": "aac", "mkv": "pcm_s16le", "avi": "pcm_s16le", "mov": "aac", "mpg": "mp2"}
PICTURES = ("png", "gif", "jpg", "bmp", "webp", "tiff")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small file of each kind."""
    folder = tmp_path_factory.mktemp("good")
    for ending, codec in SOUNDS.items():
        path = folder / f"a.{ending}"
        if codec is None:
            soundfile.write(path, sine(seconds=0.5, rate=RATE), RATE)
        else:
            encode(path, codec, sine(seconds=0.5), 44100)
    for ending, codec in FILMS.items():
        times, sound = [i / 25 for i in range(12)], [(0.0, sine(seconds=0.5))]
        numbered_film(folder / f"f.{ending}", times, "mpeg4", sound=sound, sound_codec=codec)
    for ending in PICTURES:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)).save(folder / f"p.{ending}")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def attempt(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    sound = folder / "good.wav"
    picture = name.startswith("p.")
    entry = ManifestEntry(
        1, name, str(sound if picture else path), None if name.startswith("a.") else str(path), "audio", 0.0, None
    )
    clips, rejection = 0, None
    for found in decode_entry(EntryTask(EncoderSettings(MONO, FRAMES), entry)):
        assert rejection is None, "a rejection is the last word"
        if isinstance(found, Rejection):
            rejection = found
            continue
        clips += found.total
        assert clips <= MOST_CLIPS
        for clip in found.clips:
            assert (
                clip.wave.shape == (1, MONO.samples) and np.isfinite(clip.wave).all() and np.abs(clip.wave).max() <= 1
            )
            assert 0 < clip.seconds <= MONO.seconds and 0 <= clip.clipped <= 1 and clip.start >= 0
            assert clip.images.shape[1:] == clip.motion.shape[1:] == (3, FRAMES.size, FRAMES.size)
            assert bool(len(clip.images)) == bool(entry.video)
    if rejection is not None:
        assert rejection.reason in set(Reason) and rejection.detail.startswith((str(path), str(sound), name))
        return rejection.reason
    return "" if clips else "no clip"


def files(good, most):
    """One of the good files, changed anywhere, or only where its headers are."""
    return st.sampled_from(sorted(good)).flatmap(
        lambda name: st.tuples(
            st.just(name), st.one_of(changed_bytes(good[name], most, 200), changed_bytes(good[name], most))
        )
    )


@both
def test_bytes(fuzzer, share, tmp_path, good):
    soundfile.write(tmp_path / "good.wav", sine(seconds=0.5, rate=RATE), RATE)
    assert all(fuzzer.run("media, bytes", files(good, 4), 200 * share, lambda file: attempt(tmp_path, *file)))


@both
def test_another_ending(fuzzer, share, tmp_path, good):
    """FFmpeg looks at names, too; and the beginning of one file may stand before the rest of another."""
    soundfile.write(tmp_path / "good.wav", sine(seconds=0.5, rate=RATE), RATE)
    endings = [*SOUNDS, *FILMS, *PICTURES, "m3u8", "sdp", "txt", "concat", "ass", "srt", "%03d.png"]
    name = st.sampled_from(sorted(good))
    kind = st.sampled_from(["a", "f", "p"])
    inputs = st.tuples(name, name, st.integers(0, 400), kind, st.sampled_from(endings))

    def run(drawn):
        first, second, place, kind, ending = drawn
        return attempt(tmp_path, f"{kind}.{ending}", good[first][:place] + good[second][place if place > 8 else 0 :])

    assert all(fuzzer.run("media, mixed", inputs, 60 * share, run))


def test_the_good_ones_are_accepted(tmp_path, good):
    soundfile.write(tmp_path / "good.wav", sine(seconds=0.5, rate=RATE), RATE)
    assert {name: attempt(tmp_path, name, data) for name, data in good.items()} == dict.fromkeys(good, "")
