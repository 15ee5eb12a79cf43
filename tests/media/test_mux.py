"""New sound for the pictures of a video: those stay as they are, and the sound is where it belongs."""

import av
import numpy as np
import pytest
import soundfile
import torch

from audiox_trainer.trainer.media.mux import check_writable, write_media
from tests.helpers.films import contents, turn, wandering
from tests.helpers.media_files import film as media_film
from tests.helpers.media_files import numbered_film, warble

RATE = 44_100


@pytest.fixture(scope="module")
def wave() -> torch.Tensor:
    """A second of two different sweeps, (2, n)."""
    t = np.arange(RATE) / RATE
    return torch.from_numpy(np.stack([0.5 * np.sin(2 * np.pi * (300 + k * t) * t) for k in (400, 900)])).float()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, codec in (("a.mp4", "mpeg4"), ("a.mkv", "mpeg4"), ("a.ts", "mpeg4"), ("a.webm", "libvpx")):
        wandering(folder / name, 1.4, codec, None if codec == "libvpx" else 0.0)
    numbered_film(folder / "uneven.mkv", [0.2, 0.24, 0.5, 0.52, 0.9, 1.31], "mpeg4", sound=[(0.0, warble(1.4))])
    (folder / "turned.mp4").write_bytes((folder / "a.mp4").read_bytes())
    turn(folder / "turned.mp4")
    return folder


def shift(sound: np.ndarray, wave: np.ndarray) -> int:
    """By how many samples a sound is late, from its correlation with the wave that it should be."""
    size = 1 << (len(sound) + len(wave)).bit_length()
    peak = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(wave, size).conj(), size).argmax()
    return int(peak if peak < size // 2 else peak - size)


PAIRS = {"a.mp4": ("mp4", "mkv", "mov"), "a.mkv": ("mp4",), "a.ts": ("mp4", "mkv"), "turned.mp4": ("mp4", "mkv")}
PAIRS |= {"a.webm": ("webm", "mkv"), "uneven.mkv": ("mp4", "mkv")}


@pytest.mark.parametrize(("source", "ending"), [(source, e) for source, endings in PAIRS.items() for e in endings])
def test_pictures_are_copied_and_the_sound_stands_in_its_place(videos, wave, tmp_path, source, ending):
    out = tmp_path / f"out.{ending}"
    write_media(out, wave, RATE, videos / source, start=0.3)
    given, made = contents(videos / source), contents(out)
    assert made.packets == given.packets
    assert made.pictures == given.pictures
    assert np.allclose(made.times, given.times - given.file_begins, atol=1e-3)
    assert made.rotation == given.rotation
    assert (given.rotation != 0) == (source == "turned.mp4")
    # The sound: nothing of the old one, silence until it begins, both channels themselves, and the right length.
    assert made.begins == 0
    rate = 48_000 if ending == "webm" else RATE
    assert made.rate == rate and made.sound.shape[0] == 2
    assert made.sound.shape[1] == pytest.approx(1.3 * rate, abs=1100)  # to a frame of the codec
    assert np.abs(made.sound[:, : int(0.25 * rate)]).max() < 1e-3
    for channel, expected in zip(made.sound, wave.numpy(), strict=True):
        heard = np.interp(np.arange(int(1.3 * RATE)) / RATE, np.arange(len(channel)) / rate, channel)
        assert shift(heard, expected) == pytest.approx(0.3 * RATE, abs=2)
        error = heard[int(0.3 * RATE) :][: len(expected)] - expected[: int(1.3 * RATE) - int(0.3 * RATE)]
        assert np.sqrt(np.mean(error**2)) < 0.05


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_sound_alone(wave, tmp_path, ending):
    out = tmp_path / "folder" / f"a.{ending}"
    write_media(out, wave, RATE)
    sound, rate = soundfile.read(out)
    assert rate == RATE and sound.shape == (RATE, 2)
    assert np.abs(sound - wave.numpy().T).max() < (0.05 if ending == "ogg" else 1e-4)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_long_sound_as_ogg(tmp_path):
    for name in ("a.ogg", "a.mp3"):
        write_media(tmp_path / name, torch.zeros(2, 60 * 8000), 8000)
        assert soundfile.info(tmp_path / name).frames == 60 * 8000


def test_what_cannot_be_written_is_refused_and_harms_nothing(videos, wave, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    soundfile.write(tmp_path / "sound.wav", wave.numpy().T, RATE)
    for out, video, complaint in (
        ("a.aac", None, r"only \.wav, \.flac, \.ogg, \.mp3, \.mp4"),
        ("a.mp4", None, "holds pictures; give the video"),
        ("a.webm", videos / "a.mp4", r"\.webm does not hold mpeg4"),
        ("a.mov", videos / "a.webm", r"\.mov does not hold vp8"),
        ("a.mkv", tmp_path / "text.mp4", "text.mp4: Invalid data"),
        ("a.mkv", tmp_path / "sound.wav", "no pictures"),
    ):
        with pytest.raises(ValueError, match=complaint):
            check_writable(tmp_path / out, video)
        with pytest.raises(ValueError, match=complaint):
            write_media(tmp_path / out, wave, RATE, video)
    before = (videos / "a.mp4").read_bytes()
    with pytest.raises(ValueError, match="is the video itself"):
        write_media(videos / "a.mp4", wave, RATE, videos / "a.mp4")
    assert (videos / "a.mp4").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sound.wav", "text.mp4"]


def test_a_write_that_fails_leaves_the_old_file(videos, wave, tmp_path, monkeypatch):
    out = tmp_path / "a.mkv"
    out.write_text("old")

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("audiox_trainer.trainer.media.mux._encode", broken)
    with pytest.raises(OSError, match="disk full"):
        write_media(out, wave, RATE, videos / "a.mp4")
    assert out.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_cover_is_no_film_and_an_unknown_codec_is_said(tmp_path):
    """The same as for decoding pictures."""
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=44100, layout="mono")
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(cover.encode(None))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for part in (frame, None):
            container.mux(sound.encode(part))
    with pytest.raises(ValueError, match=r"video: .*song\.mp4: no pictures but a cover"):
        check_writable(tmp_path / "a.mkv", tmp_path / "song.mp4")
    film = media_film(tmp_path / "film.mkv", 1.0)
    film.write_bytes(film.read_bytes().replace(b"V_MPEG4", b"V_ZZZZZ"))
    with pytest.raises(ValueError, match=r"video: .*film\.mkv: no decoder for track 0 \(video\)"):
        check_writable(tmp_path / "a.mkv", film)
