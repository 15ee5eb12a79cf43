"""Files that fail for a while, hang, or end their process: no good file is lost, and no bad one stops the work."""

import errno
import json
import os
import signal
import threading
import time
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from audiox_trainer.trainer.core.hardware import free_port
from audiox_trainer.trainer.manifest.manifest import ManifestEntry
from audiox_trainer.trainer.media import source
from audiox_trainer.trainer.media.source import MediaError, Reason, open_media
from audiox_trainer.trainer.prepare import encode as encode_module
from audiox_trainer.trainer.prepare import prepare_files as module
from audiox_trainer.trainer.prepare.decode import Rejection, decode_entry
from audiox_trainer.trainer.prepare.prepare_files import Workers, prepare_files
from audiox_trainer.trainer.resilience.stop_signal import StoppedError
from tests.helpers.preparation import MODEL, contents, encode_file, manifest, sound

pytestmark = pytest.mark.slow


def rejected(out):
    return {r["line"]: r["reason"] for r in map(json.loads, (out / "rejected.jsonl").read_text().splitlines())}


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_what_the_machine_lacks_is_no_fault_of_a_file(tmp_path, monkeypatch, code):
    sound(tmp_path / "a.flac")

    def fails(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(OSError, match=rf"a\.flac: {os.strerror(code)}") as caught, open_media(tmp_path / "a.flac"):
        pass
    assert caught.value.errno == code


@pytest.mark.parametrize("damaged", [False, True])
def test_an_input_error_of_ffmpeg_is_looked_into(tmp_path, monkeypatch, damaged):
    """FFmpeg says so of damage as well: a file that can be read to its end is damaged."""
    (tmp_path / "a.flac").write_bytes(b"x" * 3_000_000)
    monkeypatch.setattr(source, "_readable", source._readable if damaged else lambda path: False)

    def fails():
        with source.media_errors("a.flac", str(tmp_path / "a.flac")):
            raise source.av.error.OSError(errno.EIO, "Input/output error")

    with pytest.raises(MediaError if damaged else OSError) as caught:
        fails()
    if damaged:
        assert caught.value.reason is Reason.UNREADABLE
    else:
        assert caught.value.errno == errno.EIO and "it then counts as missing" in str(caught.value)


class TestAddresses:
    """With one worker files end in their order; a small manifest has one line a block."""

    @pytest.fixture
    def port(self):
        return free_port()

    @pytest.fixture
    def prepare(self, tmp_path, monkeypatch, forkserver, port):
        def prepare(kinds, unreachable):
            lines = [{"audio": "a.flac" if kind == "t" else f"http://127.0.0.1:{port}/a.flac"} for kind in kinds]
            path = manifest(tmp_path, *lines)
            return prepare_files(
                str(tmp_path / "out"), MODEL, path, 0, Workers(unreachable=unreachable, allow_private=True)
            )

        monkeypatch.setattr(module, "decode_entry", decode_without_pause)
        sound(tmp_path / "a.flac")
        return prepare

    def test_an_outage_stops_the_work_and_costs_no_file(self, tmp_path, prepare, port):
        message = r"3 addresses in a row gave no answer, the last one: http.*/a\.flac.*; finished work stays"
        with pytest.raises(OSError, match=message):
            prepare("tgggg", unreachable=3)
        assert [p.name for p in (tmp_path / "out/work/blocks").glob("*")] == ["000000.json"]
        with HTTPServer(("127.0.0.1", port), partial(Quiet, directory=str(tmp_path))) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            summary = prepare("tgggg", unreachable=3)
            server.shutdown()
        assert summary.clips == {"audio": 5} and not summary.rejected

    @pytest.mark.parametrize(("kinds", "most"), [("tggt", 3), ("tggg", 0)])
    def test_some_that_are_gone_are_left_out(self, tmp_path, prepare, kinds, most):
        prepare(kinds, most)
        assert rejected(tmp_path / "out") == {i: "unreachable" for i, kind in enumerate(kinds, 1) if kind == "g"}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def decode_without_pause(task):
    source.PAUSE = 0.0
    yield from decode_entry(task)


def three(folder):
    for i in range(3):
        sound(folder / f"{i}.flac", 1.0 + i)
    return manifest(folder, *({"audio": f"{i}.flac"} for i in range(3)))


def decode_hanging(task):
    if task.entry.line == 2:
        time.sleep(1000)
    yield from decode_entry(task)


def test_a_file_that_hangs_is_given_up(tmp_path, monkeypatch, forkserver):
    monkeypatch.setattr(module, "decode_entry", decode_hanging)
    summary = prepare_files(str(tmp_path / "out"), MODEL, three(tmp_path), 0, Workers(2, limit=6.0))
    assert summary.clips == {"audio": 3} and rejected(tmp_path / "out") == {2: "stuck"}  # the third file has two clips


def test_a_stop_is_heard_while_a_file_hangs(tmp_path, monkeypatch, forkserver):
    monkeypatch.setattr(module, "decode_entry", decode_hanging)

    def ask():
        while len(list((tmp_path / "out/work/blocks").glob("*.json"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR2)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(StoppedError, match="asked to stop"):
        prepare_files(str(tmp_path / "out"), MODEL, three(tmp_path), 0, 2)
    asking.join()


def decode_killed(task):
    """The second line kills its process as often as the file `times` next to it says."""
    folder = Path(task.entry.audio).parent
    with (folder / "log").open("a") as log:
        log.write(f"begin {task.entry.line}\n")
    if task.entry.line == 2:
        yield from decode_entry(task)  # what it gave before counts for nothing
        if (folder / "log").read_text().count("begin 2\n") <= int((folder / "times").read_text()):
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        time.sleep(0.3)
        yield from decode_entry(task)
    with (folder / "log").open("a") as log:
        log.write(f"end {task.entry.line}\n")


@pytest.mark.parametrize("times", [1, 2])
def test_a_process_that_is_killed(tmp_path, monkeypatch, forkserver, times):
    """Its file is tried again with all the memory for itself; one that is killed then is left out."""
    path = three(tmp_path)
    if times == 1:
        prepare_files(str(tmp_path / "expected"), MODEL, path, 0, 1)
    (tmp_path / "times").write_text(str(times))
    monkeypatch.setattr(module, "decode_entry", decode_killed)
    prepare_files(str(tmp_path / "out"), MODEL, path, 0, 2)
    log = (tmp_path / "log").read_text().split("\n")
    again = [i for i, line in enumerate(log) if line == "begin 2"][-1]
    assert log[:again].count("begin 1") == log[:again].count("end 1"), "others were under way"
    assert log[:again].count("begin 3") == log[:again].count("end 3"), "others were under way"
    if times == 1:
        assert contents(tmp_path / "out") == contents(tmp_path / "expected")
        return
    assert rejected(tmp_path / "out") == {2: "undecodable"}
    assert "killed its process twice, the second time alone (SIGKILL)" in (tmp_path / "out/rejected.jsonl").read_text()


def test_features_that_are_not_finite(tmp_path, monkeypatch):
    """One clip is left out by its position, the others stay."""
    sound(tmp_path / "a.flac", 5.0)
    truly = encode_module._encode

    def odd(*arguments):
        features = truly(*arguments)
        features[1].latent_mean[3, 5] = np.nan
        features[1].latent_std[3, 5] = 1e6
        return features

    monkeypatch.setattr(encode_module, "_encode", odd)
    entry = ManifestEntry(7, "a.flac", str(tmp_path / "a.flac"), None, "audio", 0.0, None)
    found = encode_file(entry)
    assert [clip.start for clip in found if not isinstance(clip, Rejection)] == pytest.approx([0.0, 4.096])
    (left_out,) = [rejection for rejection in found if isinstance(rejection, Rejection)]
    assert (left_out.line, left_out.reason) == (7, "features not finite") and left_out.start == pytest.approx(2.048)
    assert left_out.detail == "2 values are not finite, or beyond float16"
