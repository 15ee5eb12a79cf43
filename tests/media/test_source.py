"""Media behind addresses: fetched whole or read in parts, retried, named when they cannot be had, never left behind."""

import errno
import re
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile

from audiox_trainer.models.config import CodecConfig, VideoConfig
from audiox_trainer.trainer.media import source
from audiox_trainer.trainer.media.clips import read_clips, read_sound
from audiox_trainer.trainer.media.source import MediaError, Reason, open_media
from tests.helpers.media_files import CODED, numbered_film, sine

MONO = CodecConfig("logmel", sample_rate=8000, audio_channels=1, hop=512, frames=32, latent_channels=128)
SEEN = VideoConfig("frames", dim=64, image_rate=5.0, motion_rate=25.0, size=CODED, steps=32, pool=2)


class Shelf(BaseHTTPRequestHandler):
    """Files of a folder. What precedes the name says how it is given: /plain/, /parts/ (a range at a time), /nolength/,
    /forbidden/, /twice/ (an error the first two times), /short/ (half of it, then the connection ends)."""

    folder: Path
    asked: Counter

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.asked[self.path] += 1
        self.answer(body=True)

    def answer(self, body):
        _, way, name = self.path.split("?")[0].split("/")
        file = self.folder / name
        if way == "forbidden" or not file.exists():
            return self.send_error(403 if way == "forbidden" else 404)
        if way == "twice" and self.asked[self.path] <= 2:
            return self.send_error(503)
        data, status = file.read_bytes(), 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        total = len(data)
        if way == "parts" and wanted:
            first, last = int(wanted[1]), int(wanted[2] or total - 1)
            data, status = data[first : last + 1], 206
        self.send_response(status)
        if way == "parts":
            self.send_header("Accept-Ranges", "bytes")
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{total}")
        if way != "nolength":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if way == "short" else data)

    def log_message(self, *args):
        pass


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """The address of a server, whose files lie in tmp_path; attempts follow one another at once."""
    monkeypatch.setattr(source, "PAUSE", 0.01)
    handler = type("Handler", (Shelf,), {"folder": tmp_path, "asked": Counter()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.shutdown()
    server.server_close()


def heard(address):
    """The sound at an address of this machine."""
    with open_media(address, allow_private=True) as found:
        return read_sound(found, MONO)


@contextmanager
def refused(reason, message):
    with pytest.raises(MediaError, match=message) as caught:
        yield
    assert caught.value.reason is reason


@pytest.mark.parametrize("way", ["plain", "parts", "nolength", "twice"])
def test_a_film_behind_an_address(tmp_path, shelf, way):
    path = numbered_film(tmp_path / "a.mp4", [i / 25 for i in range(100)], sound=[(0.0, sine(seconds=4))])
    address = f"{shelf.address}/{way}/a.mp4"
    given, there = (list(read_clips(place, place, MONO, SEEN, allow_private=True)) for place in (address, path))
    assert len(given) == 2
    for one, other in zip(given, there, strict=True):
        np.testing.assert_array_equal(one.wave, other.wave)
        np.testing.assert_array_equal(one.motion, other.motion)


def test_what_is_too_large_to_fetch_is_read_in_parts(tmp_path, shelf, monkeypatch):
    monkeypatch.setattr(source, "FETCH_LIMIT", 100_000)
    soundfile.write(tmp_path / "a.wav", sine(seconds=8), 44100)
    np.testing.assert_array_equal(heard(f"{shelf.address}/parts/a.wav"), read_sound(tmp_path / "a.wav", MONO))
    with refused(Reason.UNREADABLE, r"holds more than 100000 bytes, and its server gives neither .*download it first"):
        heard(f"{shelf.address}/nolength/a.wav")


def test_other_file_systems(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "address_problem", lambda address: "")
    soundfile.write(tmp_path / "a.wav", sine(), 44100)
    with fsspec.open("memory://sounds/a.wav", "wb") as file:
        file.write((tmp_path / "a.wav").read_bytes())
    there = read_sound(tmp_path / "a.wav", MONO)
    np.testing.assert_array_equal(read_sound("memory://sounds/a.wav", MONO), there)
    with refused(Reason.MISSING, "memory://sounds/b.wav: no such object"):
        read_sound("memory://sounds/b.wav", MONO)


@pytest.mark.slow
def test_a_bucket(tmp_path, monkeypatch):
    pytest.importorskip("s3fs", reason="s3:// needs the package s3fs, which the extra s3 brings")
    import boto3
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        address = "http://127.0.0.1:{1}".format(*server.get_host_and_port())
        monkeypatch.setenv("S3_ENDPOINT_URL", address)
        bucket = boto3.resource("s3", endpoint_url=address, region_name="us-east-1").create_bucket(Bucket="sounds")
        soundfile.write(tmp_path / "a.wav", sine(seconds=3), 44100)
        bucket.upload_file(str(tmp_path / "a.wav"), "far/a.wav")
        there = read_sound(tmp_path / "a.wav", MONO)
        np.testing.assert_array_equal(read_sound("s3://sounds/far/a.wav", MONO), there)
        monkeypatch.setattr(source, "FETCH_LIMIT", 100_000)
        np.testing.assert_array_equal(read_sound("s3://sounds/far/a.wav", MONO), there)
        with refused(Reason.MISSING, "s3://sounds/b.wav: no such object"):
            read_sound("s3://sounds/b.wav", MONO)
    finally:
        server.stop()


def test_what_cannot_be_had(tmp_path, shelf):
    soundfile.write(tmp_path / "a.wav", sine(), 44100)
    (tmp_path / "empty.wav").touch()
    with refused(Reason.MISSING, "/plain/none.wav: no such object"):
        heard(f"{shelf.address}/plain/none.wav")
    with refused(Reason.ZERO_LENGTH, r"/plain/empty.wav: 0 bytes"):
        heard(f"{shelf.address}/plain/empty.wav")
    for address in (f"{shelf.address}/forbidden/a.wav", f"{shelf.address}/short/a.wav", "http://127.0.0.1:9/a.wav"):
        with refused(Reason.UNREACHABLE, f"{address}: .*in 3 attempts"):
            heard(address)


def test_nobody_reads_a_credential(shelf):
    for place in ("plain/none.wav", "forbidden/a.wav"):
        with pytest.raises(MediaError) as caught:
            heard(f"{shelf.address}/{place}?X-Amz-Signature=0123456789")
        assert "0123456789" not in str(caught.value) and "[redacted]" in str(caught.value)


def test_a_full_disk_is_no_fault_of_the_file(tmp_path, shelf, monkeypatch):
    """It would be the fault of all that follow as well."""

    class Full(tempfile.SpooledTemporaryFile):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    soundfile.write(tmp_path / "a.wav", sine(), 44100)
    monkeypatch.setattr(source, "TemporaryFile", Full)
    with pytest.raises(OSError, match="No space left"):
        heard(f"{shelf.address}/plain/a.wav")


def test_nothing_is_left_behind(tmp_path, shelf, monkeypatch):
    """Not even by a process that is killed: the file never has a name."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    soundfile.write(tmp_path / "a.wav", sine(), 44100)
    with open_media(f"{shelf.address}/plain/a.wav", allow_private=True) as file, file.container() as container:
        assert container.duration == 1_000_000
        assert list(folder.iterdir()) == []
