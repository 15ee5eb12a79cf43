"""launch/verify.py reports intact folders, finds every changed byte and names its file."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from audiox_trainer.trainer.benchmarks import verify as benchmark
from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.checkpoint.convert_run import convert_run
from audiox_trainer.trainer.checkpoint.verify import DamageFoundError, verify
from audiox_trainer.trainer.core.cli import ExitCode, exit_code_of
from audiox_trainer.trainer.core.integrity import ChangedError
from audiox_trainer.trainer.distillation.distill import load_teacher
from tests.helpers.small_config import ROOT, small_distill_config
from tests.helpers.warm_python import python

STEPS = (4, 8, 12)  # of the run's checkpoints


@pytest.fixture(scope="module")
def kept(two, scenes, tmp_path_factory):
    """A run of two ranks, its weights and its shards, all intact."""
    folder = tmp_path_factory.mktemp("kept")
    shutil.copytree(two.folders["fp32 through"], folder / "run")
    shutil.copytree(scenes, folder / "scenes")
    convert_run(folder / "run", folder / "weights")
    return folder


@pytest.fixture
def folder(kept, tmp_path):
    """A copy of `kept`, to be damaged."""
    return shutil.copytree(kept, tmp_path / "kept")


def faults(path: Path) -> list[str]:
    """The output of `verify` for a damaged folder."""
    said: list[str] = []
    with pytest.raises(DamageFoundError) as caught:
        verify(path, said.append)
    assert exit_code_of(caught.value) == ExitCode.CORRUPT
    found = [line.removeprefix("damaged: ") for line in said if line.startswith("damaged: ")]
    assert str(caught.value).startswith(f"{len(found)} of ")
    return found


def newest(folder: Path) -> Path:
    return folder / "run" / load.FOLDER / f"step_{STEPS[-1]:08d}"


def test_what_is_good_is_called_so(kept):
    said: list[str] = []
    verify(kept, said.append)
    names = [f"run/checkpoints/step_{step:08d}, 3 files" for step in STEPS]
    names += ["run/latest.json, 1 file", "scenes/audio, 2 files", "scenes/music, 2 files", "weights, 3 files"]
    assert sorted(line.rpartition(",")[0] for line in said) == sorted(f"good: {kept}/{name}" for name in names)
    for part in ("run", "run/checkpoints/step_00000004", "scenes/music", "weights"):
        verify(kept / part, said.append)


@pytest.mark.parametrize("part", ["checkpoint", "scenes/audio", "weights"])
def test_every_changed_byte_is_found_and_its_file_named(folder, part):
    """At 100 places of all files together, most of them in large files, and some in each file."""
    path = newest(folder) if part == "checkpoint" else folder / part
    rng = np.random.default_rng(0)
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "README.md")
    sizes = np.array([file.stat().st_size for file in files])
    places = [(file, int(rng.integers(size))) for file, size in zip(files, sizes, strict=True) for _ in range(10)]
    places += [(files[i], int(rng.integers(sizes[i]))) for i in rng.choice(len(files), 100, p=sizes / sizes.sum())]
    for file, at in places:
        before = file.read_bytes()
        changed = bytearray(before)
        changed[at] ^= int(rng.integers(1, 256))
        file.write_bytes(changed)
        found = faults(path)
        assert any(str(file) in fault for fault in found), f"byte {at} of {file}: {found}"
        file.write_bytes(before)
    verify(path, lambda line: None)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def change_digit(file: Path) -> None:
    """Step 12 becomes 10, of which there may well be a checkpoint."""
    file.write_text(file.read_text().replace("12", "10", 1))


RANK = "model/rank_00001.safetensors"
DAMAGE = {
    "truncated": (lambda f: cut(newest(f) / RANK), rf"{RANK} has \d+ bytes, its manifest says"),
    "missing": (lambda f: (newest(f) / RANK).unlink(), f"{RANK} is missing"),
    "extra": (lambda f: shutil.copy(newest(f) / RANK, newest(f) / "model" / "x"), "model/x does not belong there"),
    "manifest missing": (lambda f: (newest(f) / "manifest.json").unlink(), r"manifest\.json is missing"),
    "manifest truncated": (lambda f: cut(newest(f) / "manifest.json"), r"manifest\.json has changed"),
    "manifest empty": (lambda f: os.truncate(newest(f) / "manifest.json", 0), r"manifest\.json is damaged"),
    "latest missing": (lambda f: (f / "run/latest.json").unlink(), r"latest\.json"),
    "latest wrong": (lambda f: (f / "run/latest.json").write_text("[]\n"), r"latest\.json is not what was written"),
    "latest changed": (lambda f: change_digit(f / "run/latest.json"), r"latest\.json has changed"),
    "newest gone": (lambda f: shutil.rmtree(newest(f)), r"latest\.json: step 12 was saved last, and its checkpoint"),
    "all gone": (lambda f: shutil.rmtree(f / "run/checkpoints"), r"latest\.json: step 12 was saved last, and its"),
    "shard truncated": (lambda f: cut(f / "scenes/audio/shard.00000.mds"), r"shard\.00000\.mds has \d+ bytes"),
    "shard missing": (lambda f: (f / "scenes/audio/shard.00000.mds").unlink(), r"shard\.00000\.mds is missing"),
    "shard extra": (lambda f: (f / "scenes/audio/shard.00001.mds").touch(), r"shard\.00001\.mds does not belong"),
    "index missing": (lambda f: (f / "scenes/audio/index.json").unlink(), r"audio/index\.json"),
    "index truncated": (lambda f: cut(f / "scenes/audio/index.json"), r"index\.json is not JSON"),
    "features missing": (lambda f: (f / "scenes/audio/features.json").unlink(), r"features\.json is missing"),
    "features truncated": (lambda f: cut(f / "scenes/audio/features.json"), r"features\.json has changed"),
    "weights truncated": (lambda f: cut(f / "weights/model.safetensors"), r"model\.safetensors has \d+ bytes"),
    "weights missing": (lambda f: (f / "weights/model.safetensors").unlink(), r"model\.safetensors is missing"),
    "weights' manifest missing": (lambda f: (f / "weights/manifest.json").unlink(), "convert the run again"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_once(folder, kind):
    damage, message = DAMAGE[kind]
    damage(folder)
    (found,) = faults(folder)
    assert re.search(message, found)


def test_what_nobody_reads_does_not_count(folder):
    """Leftovers of a killed save or conversion, and other files that people keep with weights."""
    newest(folder).with_name("step_00000016.partial").mkdir()
    (folder / ".weights.partial").mkdir()
    (folder / ".weights.partial" / "model.safetensors").touch()
    (folder / "weights" / "NOTES.md").write_text("mine")
    said: list[str] = []
    verify(folder, said.append)
    assert said and not any("damaged" in line or "partial" in line or "NOTES" in line for line in said)


def test_links_are_followed_once(folder):
    (folder / "linked").mkdir()
    (folder / "linked" / "audio").symlink_to(folder / "scenes" / "audio")
    (folder / "linked" / "back").symlink_to(folder)
    said: list[str] = []
    verify(folder / "linked", said.append)
    assert sum("audio" in line for line in said) == 1


def test_nothing_to_look_at(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="holds no run, checkpoint, shards, pairs or weights; give such a folder"):
            verify(path, pytest.fail)


def test_a_changed_teacher_starts_no_student(folder):
    config = small_distill_config()
    _, digest = load_teacher(config, folder / "weights")
    assert digest == json.loads((folder / "weights/manifest.json").read_text())["files"]["model.safetensors"]["xxh3"]
    file = folder / "weights/model.safetensors"
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    with pytest.raises(ChangedError, match=r"model\.safetensors has changed: its hash is not") as caught:
        load_teacher(config, folder / "weights")
    assert exit_code_of(caught.value) == ExitCode.CORRUPT


def test_its_rate_is_compared(kept):
    first, _, *rows = benchmark.measure(kept / "scenes" / "audio", 2).splitlines()
    assert first.startswith("3 files, ") and [row.split()[0] for row in rows] == ["read", "verify", "hash", "verify"]
    with pytest.raises(ValueError, match="--rate 0: give 1 round or more"):
        benchmark.measure(kept / "scenes", 0)


@pytest.mark.slow
def test_on_the_command_line(folder):
    command = [*python(), "launch/verify.py", str(folder / "run"), str(folder / "scenes")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (ExitCode.DONE, "")
    assert len(done.stdout.splitlines()) == 6 and all(line.startswith("good: ") for line in done.stdout.splitlines())
    cut(newest(folder) / RANK)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == ExitCode.CORRUPT
    assert f"damaged: {newest(folder) / RANK} has " in done.stdout and "error: 1 of 10 files under" in done.stderr
