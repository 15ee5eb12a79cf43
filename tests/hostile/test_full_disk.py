"""A disk that is full in the middle of a file: a sentence, and neither half a file nor an empty one under its name."""

import errno
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from audiox_trainer.trainer.checkpoint import convert_encoders
from audiox_trainer.trainer.manifest.scan import scan
from audiox_trainer.trainer.media.mux import write_media
from tests.helpers.films import wandering

LIMIT = 4096


@contextmanager
def full_disk():
    """No file of this process may grow beyond LIMIT bytes: writing fails as on a full disk, with another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_a_sound(tmp_path, ending):
    wave = torch.rand(1, 200_000) - 0.5
    with full_disk(), pytest.raises(OSError, match="a sound cannot be written there; is the disk full"):
        write_media(tmp_path / f"a.{ending}", wave, 8000)
    assert not any(tmp_path.iterdir())


def test_a_film(tmp_path, monkeypatch):
    monkeypatch.setattr("audiox_trainer.trainer.media.mux.FULL", {errno.EFBIG})
    wandering(tmp_path / "v.mp4", 1.4, "mpeg4", None)
    with full_disk(), pytest.raises(OSError, match=r"out: .*with the pictures of") as caught:
        write_media(tmp_path / "a.mkv", torch.rand(1, 200_000) - 0.5, 8000, tmp_path / "v.mp4")
    assert caught.value.errno == errno.EFBIG and [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_weights(tmp_path):
    out = tmp_path / "weights"
    with full_disk(), pytest.raises(OSError):
        convert_encoders._write_weights(out, {"a": torch.zeros(100_000)}, lambda folder: None)
    assert not any(tmp_path.iterdir())


def test_a_scan(tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    for i in range(200):
        (folder / f"a-sound-with-a-name-{i}.wav").touch()
    with full_disk(), pytest.raises(OSError):
        scan(folder, tmp_path / "clips.jsonl", "audio", pictures=False)
    assert [path.name for path in tmp_path.iterdir()] == ["media"]
    scan(folder, tmp_path / "clips.jsonl", "audio", pictures=False)
    assert len(Path(tmp_path / "clips.jsonl").read_text().splitlines()) == 200
