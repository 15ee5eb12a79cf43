"""Drivers and makers that are killed, and begin again: the same samples, nothing made twice that was finished."""

import json
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from importlib import import_module

import pytest

from audiox_trainer.trainer.core.cli import ExitCode
from audiox_trainer.trainer.data.shards import DamagedError
from audiox_trainer.trainer.prepare.filters import FiltersConfig
from audiox_trainer.trainer.prepare.prepare_files import Workers, prepare_files
from tests.helpers.killing import finished, prepare_under_fire
from tests.helpers.media_files import film, sine
from tests.helpers.preparation import MODEL, contents, manifest, sound, start_driver
from tests.helpers.warm_python import python

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forkserver")]
FILES = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A manifest of recordings, some of them bad, and what one driver makes of it."""
    folder = tmp_path_factory.mktemp("recordings")
    lines = []
    for i in range(FILES):
        sound(folder / f"{i}.flac", 2 + 12 * (i % 5), level=0.5 if i % 6 else 1e-6)
        music = {"domain": "music", "genre": "waltz", "mood": "sad", "instruments": ["piano", "oboe"][i % 2]}
        lines.append({"audio": f"{i}.flac", **(music if i % 3 else {"category": {"bell": 1 + i % 2}})})
    lines[5]["audio"] = "nowhere.flac"
    for i in (2, 15):
        film(folder / f"{i}.mp4", 2.5, sound=sine(seconds=2.5))
        lines[i]["video"] = f"{i}.mp4"
        del lines[i]["audio"]
    path = manifest(folder, *lines)
    prepare_files(str(folder / "out"), MODEL, path, seed=0, workers=2)
    return path, contents(folder / "out")


def end(*processes, timeout=600):
    for process in processes:
        process.join(timeout)
    return [process.exitcode for process in processes]


@pytest.mark.parametrize("workers", [3, Workers(3, ("cpu",))])
def test_other_makers_give_the_same(tmp_path, made, workers):
    """More of them; and makers of a device, whose decoders share the files of a block."""
    path, expected = made
    prepare_files(str(tmp_path / "out"), MODEL, path, 0, workers)
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.long] if seed >= 2 else []) for seed in range(12)]
)
def test_killed_at_random_moments(tmp_path, made, seed):
    path, expected = made
    prepare_under_fire(tmp_path / "out", path, 2, seed, drivers=1 + seed % 2, shots=3)
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.long)])
def test_a_tenth_is_damaged_and_makers_and_drivers_are_killed(tmp_path, count):
    path = damaged_manifest(tmp_path, count)
    start = prepare_files(str(tmp_path / "undisturbed"), MODEL, path, 0, 2)
    prepare_under_fire(tmp_path / "out", path, Workers(2, ("cpu",)), 0, drivers=count // 333 or 1, shots=count // 50)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
    assert sum(start.rejected.values()) == count // 10


def damaged_manifest(folder, count):
    """Sounds of up to 20 s, each tenth of them cut short, empty, no sound, or missing."""
    lines = []
    for i in range(count):
        name = f"{i}.flac"
        sound(folder / name, 1 + 7 * i % 20)
        if i % 10 == 7:
            kind = i // 10 % 4
            if kind == 0:
                os.truncate(folder / name, (folder / name).stat().st_size // 2)
            elif kind == 3:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(b"no sound" * (kind == 1))
        lines.append({"audio": name, "category": {"bell": 1 + i % 2}})
    return manifest(folder, *lines)


def small(folder, count=6):
    """A manifest of a few short sounds."""
    for i in range(count):
        sound(folder / f"{i}.flac", 1.0 + i)
    return manifest(folder, *({"audio": f"{i}.flac", "category": {"bell": 2}} for i in range(count)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed 0, this command has 1"),
        ({"model": replace(MODEL, codec=replace(MODEL.codec, hop=256))}, "codec.hop 512, this command has 256"),
        ({"filters": FiltersConfig(max_silent=0.5)}, r"filters\.max_silent 1\.0, this command has 0\.5"),
        ({"manifest": "other"}, "lines 6, this command has 2"),
    ],
)
def test_a_folder_begun_with_something_else(tmp_path, changes, message):
    path = small(tmp_path)
    arguments = {"out": str(tmp_path / "out"), "model": MODEL, "manifest": path, "seed": 0, "workers": 1}
    prepare_files(**arguments)
    before = contents(tmp_path / "out")
    if "manifest" in changes:
        (tmp_path / "more").mkdir()
        changes = {"manifest": small(tmp_path / "more", 2)}
    with pytest.raises(
        ValueError, match=rf"out was started with .*{message}; keep the former, or choose another --out"
    ):
        prepare_files(**arguments | changes)
    assert contents(tmp_path / "out") == before
    prepare_files(**arguments)
    assert contents(tmp_path / "out") == before, "finished already"


def test_a_folder_that_holds_something_else(tmp_path):
    path = small(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("precious")
    with pytest.raises(ValueError, match="out holds something else and is left as it is"):
        prepare_files(str(tmp_path / "out"), MODEL, path, seed=0, workers=1)
    with pytest.raises(ValueError, match=r"clips\.jsonl is a file; choose another --out"):
        prepare_files(str(path), MODEL, path, seed=0, workers=1)
    assert (tmp_path / "out/mine").read_text() == "precious"


CRAMPED = """
import resource, sys
from pathlib import Path
from audiox_trainer.trainer.core.cli import run
from audiox_trainer.trainer.prepare.prepare_files import prepare_files
from tests.helpers.preparation import MODEL

resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
sys.exit(run(lambda: print(prepare_files(sys.argv[1], MODEL, Path(sys.argv[2]), 0, 1))))
"""


def test_a_disk_without_room(tmp_path, root):
    """A limit on the size of files makes a write fail as a full disk does; with more room the same command
    continues."""
    path = small(tmp_path)
    command = [*python(), "-c", CRAMPED, str(tmp_path / "out"), str(path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stderr
    assert re.search(r"File too large.*; finished work stays in .*out, and the same command continues", done.stderr)
    before = finished(tmp_path / "out")
    assert 0 < len(before) < 6
    prepare_files(str(tmp_path / "out"), MODEL, path, seed=0, workers=1)
    assert before.items() <= finished(tmp_path / "out").items()
    prepare_files(str(tmp_path / "whole"), MODEL, path, seed=0, workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "work/blocks/000002.json").write_text("{}"), r"000002\.json: not the record of a block"),
        (lambda out: edit(out / "work/blocks/000002.json"), r"000002\.json: changed, or of another command; remove it"),
        (
            lambda out: (out / "audio/000002/shard.00000.mds").unlink(),
            r"shard\.00000\.mds is missing; remove .*000002\.json",
        ),
        (
            lambda out: os.truncate(out / "audio/000002/shard.00000.mds", 1000),
            r"shard\.00000\.mds has 1000 bytes, not \d+; remove .*000002\.json",
        ),
    ],
)
def test_a_damaged_block_is_named_and_made_again(tmp_path, damage, message):
    path = small(tmp_path)
    prepare_files(str(tmp_path / "out"), MODEL, path, seed=0, workers=1)
    expected = contents(tmp_path / "out")
    damage(tmp_path / "out")
    (tmp_path / "out/prepare_report.json").unlink()
    with pytest.raises(DamagedError, match=message):
        prepare_files(str(tmp_path / "out"), MODEL, path, seed=0, workers=1)
    (tmp_path / "out/work/blocks/000002.json").unlink()
    prepare_files(str(tmp_path / "out"), MODEL, path, seed=0, workers=1)
    assert contents(tmp_path / "out") == expected


def edit(path):
    path.write_text(path.read_text().replace('"samples": 2', '"samples": 3'))


def test_asked_to_stop(tmp_path, made):
    """By a signal, as a batch system sends it: leaves with its own code, and the same command continues."""
    path, expected = made
    driver = start_driver(tmp_path / "out", path)
    while len(finished(tmp_path / "out")) < 2:
        time.sleep(0.002)
    os.kill(driver.pid, signal.SIGUSR2)
    assert end(driver) == [ExitCode.STOPPED]
    assert len(finished(tmp_path / "out")) < FILES
    assert end(start_driver(tmp_path / "out", path)) == [0]
    assert contents(tmp_path / "out") == expected


def test_the_index_is_as_streaming_merges_it(tmp_path, made):
    import_module("audiox_trainer.trainer.data.streaming_library")  # enters the package without its start
    from streaming.base.util import merge_index

    _, expected = made
    for name, data in expected.items():
        if name.startswith("music/") and name.endswith(".mds"):
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_bytes(data)
    shards = json.loads(expected["music/index.json"])["shards"]
    for shard in shards:
        folder, _, name = shard["raw_data"]["basename"].partition("/")
        part = {"version": 2, "shards": [{**shard, "raw_data": {**shard["raw_data"], "basename": name}}]}
        (tmp_path / "music" / folder / "index.json").write_text(json.dumps(part))
    merge_index(str(tmp_path / "music"), keep_local=True)
    assert json.loads((tmp_path / "music/index.json").read_text()) == json.loads(expected["music/index.json"])
