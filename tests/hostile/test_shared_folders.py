"""Places that all users of a machine share: a folder that somebody else has made is neither used nor waited for."""

import os
from pathlib import Path

import pytest

from audiox_trainer.trainer.core.files import private_folder
from audiox_trainer.trainer.data import reader, storage


@pytest.fixture
def taken(tmp_path):
    """Makes a folder as somebody else would."""

    def make(folder, kind):
        if kind == "another user's":
            folder.mkdir()
            os.chown(folder, 12345, 12345)
        elif kind == "a link":
            (tmp_path / "elsewhere").mkdir()
            folder.symlink_to(tmp_path / "elsewhere")
        elif kind == "a dangling link":
            folder.symlink_to(tmp_path / "nowhere")
        elif kind == "a file":
            folder.touch()
        elif kind == "open to all":
            folder.mkdir()
            folder.chmod(0o777)
        else:
            os.mkfifo(folder)

    return make


KINDS = ["another user's", "a link", "a dangling link", "a file", "open to all", "a pipe"]
KINDS = KINDS if os.getuid() == 0 else KINDS[1:]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_refused(tmp_path, taken, kind, monkeypatch):
    folder = tmp_path / "x"
    taken(folder, kind)
    with pytest.raises(ValueError, match="have it removed"):
        private_folder(folder)
    monkeypatch.setattr(storage.tempfile, "tempdir", str(tmp_path))
    scratch = storage.scratch_folder("s3://bucket/a")
    scratch.rmdir()
    (tmp_path / "elsewhere").exists() and (tmp_path / "elsewhere").rmdir()
    taken(scratch, kind)
    with pytest.raises(ValueError, match="have it removed"):
        storage.scratch_folder("s3://bucket/a")


@pytest.mark.parametrize("kind", KINDS)
def test_the_lock_of_a_machine(tmp_path, taken, kind, monkeypatch):
    monkeypatch.setattr(reader, "SHARED_MEMORY", tmp_path)
    taken(tmp_path / f"audiox-trainer-{os.getuid()}", kind)
    world = type("World", (), {"is_local_leader": True})()
    with pytest.raises(ValueError, match="have it removed"), reader._machine_lock(world):
        pytest.fail("it is not ours")


def test_a_folder_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "SHARED_MEMORY", tmp_path)
    world = type("World", (), {"is_local_leader": True})()
    for _ in range(2):
        with reader._machine_lock(world):
            pass
    folder = Path(tmp_path, f"audiox-trainer-{os.getuid()}")
    assert folder.stat().st_mode & 0o777 == 0o700 and private_folder(folder) == folder
