"""Addresses that make fsspec read other files, run a template or leave this machine: refused wherever one is read."""

import json
import socket

import fsspec
import pytest

from audiox_trainer.models import strict
from audiox_trainer.trainer.core.config import StreamConfig
from audiox_trainer.trainer.data.storage import open_store
from audiox_trainer.trainer.generation.prompts import parse_prompt
from audiox_trainer.trainer.manifest.manifest import ManifestEntry, read_entries
from audiox_trainer.trainer.media import source
from audiox_trainer.trainer.media.clips import read_sound
from audiox_trainer.trainer.media.source import MediaError, Reason
from audiox_trainer.trainer.prepare.decode import EncoderSettings, EntryTask, Rejection, decode_entry
from tests.helpers.media_files import FRAMES, MONO

CHAINS = [
    "reference://x.wav::file://REFS",
    "simplecache::file://REFS",
    "filecache::https://host/a.wav",
    "blockcache::s3://bucket/a.wav",
    "zip://a.wav::https://host/a.zip",
    "tar://a.wav::file:///a.tar",
    "https://host/a.wav::file:///etc/passwd",
    "file://REFS::reference://x.wav",
    "dir::file:///etc",
    "http://[::1]/a.wav",
]
PROTOCOLS = [
    *("reference", "memory", "sftp", "ssh", "ftp", "smb", "hdfs", "webhdfs", "arrow_hdfs", "github", "git", "dask"),
    *("jupyter", "libarchive", "zip", "tar", "data", "cached", "dbfs", "generic", "async_wrapper", "asynclocal", "dir"),
    *("root", "tosfs", "HTTP", "File", "S3", "ht+tp", "javascript", "concat", "subfile", "pipe", "fd", "crypto"),
]
ADDRESSES = CHAINS + [f"{name}://x.wav" for name in PROTOCOLS]


@pytest.fixture
def opened(monkeypatch):
    """The file systems that fsspec was asked for."""
    opened = []

    def refuse(name, *arguments, **options):
        opened.append(name)
        raise AssertionError(f"fsspec was asked for {name}")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    monkeypatch.setattr(fsspec, "get_filesystem_class", refuse)
    return opened


@pytest.fixture
def address(request, tmp_path):
    """An address; REFS in it is a list of references whose template, once filled in, would write a file."""
    run = "{{ cycler.__init__.__globals__.os.system('touch ran') }}"
    refs = {"version": 1, "templates": {"run": run}, "refs": {"x.wav": ["{{ run }}"]}}
    (tmp_path / "refs.json").write_text(json.dumps(refs))
    return request.param.replace("REFS", str(tmp_path / "refs.json"))


@pytest.mark.parametrize("address", ADDRESSES, indirect=True)
def test_no_hostile_address_is_opened(address, tmp_path, opened, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    for key in ("audio", "video"):
        manifest.write_text(json.dumps({"audio": "a.wav", key: address}) + "\n")
        with pytest.raises(ValueError, match=rf":1: {key} is .* is not read; "):
            read_entries(manifest)
    with pytest.raises(MediaError, match="is not read; ") as caught:
        read_sound(address, MONO)
    assert caught.value.reason is Reason.UNREADABLE
    with pytest.raises(ValueError, match=r"video: .* is an address; download it"):
        parse_prompt({"video": address}, tmp_path)
    if "://" in address.partition("::")[0]:
        with pytest.raises(ValueError, match="expected a folder, or BUCKET/FOLDER after one of"):
            open_store(address)
    with pytest.raises(ValueError, match=r"path: .* is not read; "):
        strict.parse(StreamConfig, {"path": address, "tasks": {"T2A": 1}})
    assert not opened and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(113, "No route to host"),
        TimeoutError("timed out"),
        socket.gaierror(-2, "Name or service not known"),
        ConnectionResetError("reset"),
        PermissionError("403"),
        RuntimeError("an error of a client of its own"),
        ValueError("Port could not be cast to integer"),
    ],
    ids=repr,
)
def test_a_host_that_is_dead_costs_its_file_only(error, monkeypatch):
    """Some clients connect when they are made."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(source, "PAUSE", 0.0)
    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    entry = ManifestEntry(3, "a file", "https://host/a.wav", None, "audio", 0.0, None)
    (rejection,) = decode_entry(EntryTask(EncoderSettings(MONO, FRAMES), entry))
    assert isinstance(rejection, Rejection) and rejection.reason == "unreachable"


@pytest.mark.parametrize(
    "rest", ["[zz/a.wav", "[fe80/a", "127.0.0.1:99999999/a.wav", "", "/", "?", "#", "127.0.0.1:9/\ud800", "a\nb/c"]
)
def test_an_address_that_is_none(rest, monkeypatch):
    monkeypatch.setattr(source, "PAUSE", 0.0)
    entry = ManifestEntry(3, "a file", f"http://{rest}", None, "audio", 0.0, None, True)
    (rejection,) = decode_entry(EntryTask(EncoderSettings(MONO, FRAMES), entry))
    assert isinstance(rejection, Rejection) and rejection.reason in ("unreachable", "missing", "unreadable")


@pytest.mark.parametrize("address", ["https://host/a.wav", "http://host/a.wav", "hf://datasets/a/b.wav"])
def test_the_usual_addresses_are_allowed(address, tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps({"audio": address}) + "\n")
    assert read_entries(manifest)[0].audio == address
