"""Files on which the libraries fail in their own ways: each is left out by its name, and the work continues."""

import errno
import os

import fsspec
import numpy as np
import pytest
import soundfile
from fsspec.implementations.memory import MemoryFileSystem

from audiox_trainer.trainer.manifest.manifest import ManifestEntry
from audiox_trainer.trainer.media import source
from audiox_trainer.trainer.media.clips import read_clips, read_sound
from audiox_trainer.trainer.media.source import MediaError, Reason
from audiox_trainer.trainer.prepare import decode as decode_module
from audiox_trainer.trainer.prepare.decode import EncoderSettings, EntryTask, Rejection, decode_entry
from tests.helpers.media_files import encode, film, mixed, sine, warble
from tests.helpers.preparation import MODEL


def decoded(audio, video=None):
    entry = ManifestEntry(3, "a file", str(audio), None if video is None else str(video), "audio", 0.0, None)
    return list(decode_entry(EntryTask(EncoderSettings(MODEL.codec, MODEL.video), entry)))


@pytest.mark.parametrize(("codec", "kind"), [(b"A_AAC", "audio"), (b"V_MPEG4", "video")])
def test_a_codec_that_nobody_knows(tmp_path, codec, kind):
    path = film(tmp_path / "a.mkv", 1.0, sound=sine())
    path.write_bytes(path.read_bytes().replace(codec, codec[:2] + b"Z" * (len(codec) - 2)))
    (found,) = decoded(path, path)
    assert isinstance(found, Rejection) and found.reason == "undecodable"
    assert f"a.mkv: no decoder for track {int(kind == 'audio')} ({kind})" in found.detail


def test_a_layout_that_changes_under_one_number_of_channels(tmp_path):
    """Two channels behind, then one and one of the low frequencies: four each time."""
    for name, layout in (("a.ac3", "quad(side)"), ("b.ac3", "4.0")):
        encode(tmp_path / name, "ac3", np.tile(warble(1.0, 48000), (4, 1)), 48000, layout)
    both = tmp_path / "both.ac3"
    both.write_bytes((tmp_path / "a.ac3").read_bytes() + (tmp_path / "b.ac3").read_bytes())
    with pytest.raises(MediaError, match=r"both\.ac3: changes from .*quad\(side\).* to .*4\.0") as caught:
        read_sound(both, MODEL.codec)
    assert caught.value.reason is Reason.UNDECODABLE


def test_whatever_a_library_raises_is_the_files_fault(tmp_path, monkeypatch):
    def clips(*_, **options):
        raise RuntimeError("surprise at https://host/a.wav?X-Amz-Signature=0123456789")
        yield

    monkeypatch.setattr(decode_module, "read_clips", clips)
    (found,) = decoded(tmp_path / "a.wav")
    assert (found.line, found.reason) == (3, "undecodable")
    assert "a file: RuntimeError: surprise" in found.detail and "0123456789" not in found.detail


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), MemoryError()])
def test_what_the_machine_lacks_is_not(tmp_path, monkeypatch, fault):
    def clips(*_, **options):
        raise fault
        yield

    monkeypatch.setattr(decode_module, "read_clips", clips)
    with pytest.raises(type(fault)):
        decoded(tmp_path / "a.wav")


class Odd(Exception):
    """An error like those of aiohttp and botocore, which are no OSError."""


def test_a_connection_that_breaks_while_parts_are_read(tmp_path, monkeypatch):
    """Once, and the read is tried again; or every time."""
    monkeypatch.setattr(source, "FETCH_LIMIT", 10_000)
    monkeypatch.setattr(source, "PAUSE", 0.01)
    monkeypatch.setattr(source, "address_problem", lambda address: "")
    soundfile.write(tmp_path / "a.wav", sine(seconds=2), 44100)
    with fsspec.open("memory://parts/a.wav", "wb") as file:
        file.write((tmp_path / "a.wav").read_bytes())
    whole, opened, faults = read_sound(tmp_path / "a.wav", MODEL.codec), MemoryFileSystem._open, [0]

    class Breaking:
        def __init__(self, file):
            self.seek, self.tell, self.close, self._read = file.seek, file.tell, file.close, file.read

        def read(self, size=-1):
            data = self._read(size)
            if self.tell() > 40_000 and faults[0]:
                faults[0] -= 1
                raise Odd("connection reset")
            return data

    monkeypatch.setattr(MemoryFileSystem, "_open", lambda *a, **k: Breaking(opened(*a, **k)))
    faults[0] = 1
    np.testing.assert_array_equal(read_sound("memory://parts/a.wav", MODEL.codec), whole)
    faults[0] = 1000
    with pytest.raises(MediaError, match=r"memory://parts/a\.wav: Odd: connection reset, in 3 attempts") as caught:
        list(read_clips("memory://parts/a.wav", None, MODEL.codec, MODEL.video))
    assert caught.value.reason is Reason.UNREACHABLE


CUT = {
    "a.mkv": ("mpeg4", "aac", "declares 4.0. s and ends after"),
    "b.mkv": ("libx264", "aac", "declares 4.0. s and ends after"),
    "a.mka": (None, "aac", "declares 4.0. s and ends after"),
    "a.webm": ("libvpx", "libopus", "declares 4.0. s and ends after"),
    "a.flv": ("flv", "aac", "(declares 4.0. s and ends after|the last packet is truncated)"),
    "a.avi": ("mpeg4", "libmp3lame", r"declares \d+ bytes and holds"),
    "a.w64": (None, "pcm_s16le", r"declares \d+ bytes and holds"),
    "a.wma": (None, "wmav2", r"declares \d+ bytes and holds"),
    "a.wmv": ("msmpeg4", "wmav2", r"declares \d+ bytes and holds"),
    "a.mp3": (None, "libmp3lame", "declares 4.0. s of sound and holds"),
    "a.mp4": ("libx264", "aac", "declares 4.0. s of sound and holds"),
}


@pytest.mark.parametrize("name", CUT)
def test_a_container_that_was_cut_is_no_shorter_file(tmp_path, name):
    pictures, sound, message = CUT[name]
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    path = mixed(tmp_path / name, pictures, sound, **options)
    assert read_sound(path, MODEL.codec).shape[1] / MODEL.codec.sample_rate == pytest.approx(4.0, abs=0.1)
    os.truncate(path, round(0.6 * path.stat().st_size))
    with pytest.raises(MediaError, match=f"{name}: {message}") as caught:
        read_sound(path, MODEL.codec)
    assert caught.value.reason is Reason.TRUNCATED


def test_sound_may_end_before_the_pictures_or_after_them(tmp_path):
    """A container's length is that of its longest track."""
    for seconds, shown in ((2.0, 4.0), (4.0, 2.0)):
        path = mixed(tmp_path / "a.mkv", "mpeg4", seconds=seconds, shown=shown)
        assert read_sound(path, MODEL.codec).shape[1] / MODEL.codec.sample_rate == pytest.approx(seconds, abs=0.1)


def test_a_container_that_declares_no_length(tmp_path):
    """Such a file was written to a pipe."""
    path = mixed(tmp_path / "a.mka", sound="ac3", live="1")
    assert read_sound(path, MODEL.codec).shape[1] / MODEL.codec.sample_rate == pytest.approx(4.0, abs=0.1)
