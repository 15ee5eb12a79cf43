"""Addresses that make fsspec read other files, run a template or leave this machine: refused wherever one is read."""

import json

import fsspec
import pytest

from audiox_trainer.models import strict
from audiox_trainer.models.config import CodecConfig
from audiox_trainer.trainer.core.config import StreamConfig
from audiox_trainer.trainer.data.storage import open_store
from audiox_trainer.trainer.generation.prompts import parse_prompt
from audiox_trainer.trainer.manifest.manifest import read_manifest
from audiox_trainer.trainer.media.clips import read_sound
from audiox_trainer.trainer.media.source import MediaError, Reason

MONO = CodecConfig("logmel", sample_rate=8000, audio_channels=1, hop=512, frames=32, latent_channels=128)
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
            read_manifest(manifest)
    with pytest.raises(MediaError, match="is not read; ") as caught:
        read_sound(address, MONO)
    assert caught.value.reason is Reason.UNREADABLE
    with pytest.raises(ValueError, match=r"video: .* is an address; download it"):
        parse_prompt({"video": address}, tmp_path)
    if "://" in address.partition("::")[0]:
        with pytest.raises(ValueError, match="expected a folder, or BUCKET/FOLDER after one of"):
            open_store(address, 0)
    with pytest.raises(ValueError, match=r"path: .* is not read; "):
        strict.parse(StreamConfig, {"path": address, "tasks": {"T2A": 1}})
    assert not opened and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("address", ["https://host/a.wav", "http://host/a.wav", "hf://datasets/a/b.wav"])
def test_the_usual_addresses_are_allowed(address, tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps({"audio": address}) + "\n")
    assert read_manifest(manifest)[0].audio == address
