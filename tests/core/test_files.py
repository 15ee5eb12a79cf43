"""A file or a folder appears whole or not at all."""

import os

import pytest

from audiox_trainer.trainer.core import files
from audiox_trainer.trainer.core.files import atomic_output, write_json


def test_nothing_is_there_before_the_end(tmp_path):
    with atomic_output(tmp_path / "a" / "out") as partial:
        partial.mkdir()
        (partial / "file").write_text("new")
        assert not (tmp_path / "a" / "out").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    assert (tmp_path / "a" / "out" / "file").read_text() == "new"


@pytest.mark.parametrize("replace", [False, True])
def test_a_fault_leaves_what_was_there(tmp_path, replace):
    (tmp_path / "before").write_text("precious")
    out = tmp_path / ("before" if replace else "out")
    with pytest.raises(OSError, match="full"), atomic_output(out, replace) as partial:
        partial.write_text("half")
        raise OSError("the disk is full")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("before", "precious")]


def test_what_exists_is_refused_also_when_it_appears_meanwhile(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="out exists already and is left as it is"), atomic_output(out) as partial:
        partial.mkdir()
        out.mkdir()
    with pytest.raises(ValueError, match="out exists already"), atomic_output(out):
        pytest.fail("it exists")
    assert list(tmp_path.iterdir()) == [out]


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, sync = [], files.sync
    monkeypatch.setattr(files, "sync", lambda path: (synced.append((path.name, out.exists())), sync(path)))
    out = tmp_path / "out"
    with atomic_output(out) as partial:
        (partial / "inner").mkdir(parents=True)
        (partial / "inner" / "file").touch()
    assert synced == [("inner", False), ("file", False), (partial.name, False), (tmp_path.name, True)]


def test_new_folders_above_are_on_the_disk_too(tmp_path, monkeypatch):
    synced, sync = [], files.sync
    monkeypatch.setattr(files, "sync", lambda path: (synced.append(path), sync(path)))
    with atomic_output(tmp_path / "a" / "b" / "out") as partial:
        assert synced == [tmp_path, tmp_path / "a"]
        partial.touch()
    assert synced[2:] == [partial, tmp_path / "a" / "b"]


def test_a_former_folder_is_never_half_there(tmp_path, monkeypatch):
    """Its name goes before its content."""
    removed, remove = [], files.remove
    monkeypatch.setattr(files, "remove", lambda path: (removed.append(path.name), remove(path)))
    for content in ("old", "new"):
        with atomic_output(tmp_path / "out", replace=True) as partial:
            partial.mkdir()
            (partial / content).touch()
    assert "out.old.partial" in removed and "out" not in removed
    assert os.listdir(tmp_path / "out") == ["new"]


def test_a_text_replaces_another(tmp_path):
    for value in ({"a": 1}, {"b": [2]}):
        write_json(tmp_path / "deep" / "file.json", value)
    assert (tmp_path / "deep" / "file.json").read_text() == '{\n "b": [\n  2\n ]\n}\n'
