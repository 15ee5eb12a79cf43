"""A flipped bit in a small file of a run is found by launch/verify.py, whatever it makes of the file."""

import pytest

from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.checkpoint.verify import DamageFoundError, verify
from audiox_trainer.trainer.core.integrity import file_entry, write_manifest


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two checkpoints of one file each."""
    run = tmp_path_factory.mktemp("flips") / "run"
    for step in (10, 12):
        folder = load.step_folder(run, step)
        folder.mkdir(parents=True)
        (folder / "a").write_text("weights")
        write_manifest(folder, {"step": step, "files": {"a": file_entry(folder / "a")}})
    load.write_latest(run, 12)
    verify(run, lambda line: None)
    return run


@pytest.mark.parametrize("name", ["latest.json", "manifest.json", "a"])
def test_a_bit(run, name):
    (file,) = [path for path in run.rglob(name) if "10" not in path.parent.name]
    data = file.read_bytes()
    try:
        for bit in range(0, 8 * len(data), 1 if name == "latest.json" else 7):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            with pytest.raises(DamageFoundError):
                verify(run, lambda line: None)
    finally:
        file.write_bytes(data)
