"""Ranks that share a manifest, are killed, and begin again: the same samples, nothing made twice."""

import json
import os
import resource
import signal
import time
from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from audiox_trainer.trainer.core.cli import ExitCode
from audiox_trainer.trainer.data.shards import DamagedError
from audiox_trainer.trainer.prepare.filters import FiltersConfig
from audiox_trainer.trainer.prepare.prepare_files import PrepareRank, prepare_files
from audiox_trainer.trainer.prepare.worker_pool import TaskEnd, WorkerPool
from tests.helpers.media_files import film, sine
from tests.helpers.preparation import MODEL, contents, manifest, sound, start_rank

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forkserver")]
FILES = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A manifest of recordings, some of them bad, and what one rank makes of it."""
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


def finished(out):
    """The time at which each block was finished."""
    return {p.name: p.stat().st_mtime_ns for p in (out / "work/blocks").glob("*.json")}


def end(*processes, timeout=60):
    for process in processes:
        process.join(timeout)
    return [process.exitcode for process in processes]


def test_two_ranks_give_the_same(tmp_path, made):
    path, expected = made
    assert end(*(start_rank(tmp_path / "out", path, rank, 2) for rank in range(2))) == [0, 0]
    assert contents(tmp_path / "out") == expected


def kill_and_begin_again(out, path, seed):
    """Kills one of two ranks, or both, once or twice; then one rank or two begin again and end. What was finished at a
    kill is not made again."""
    rng = np.random.default_rng(seed)
    for _ in range(rng.integers(1, 3)):
        before = kill(out, path, rng, after_the_last=seed % 3 == 0)
    again = int(rng.integers(1, 3))
    assert end(*(start_rank(out, path, rank, again) for rank in range(again))) == [0] * again
    assert before.items() <= finished(out).items(), "what was finished was made again"


def kill(out, path, rng, after_the_last):
    """Kills ranks when some blocks are finished, or after the last one, while streams and report are made. If one of
    two lives on, it makes what is left. -> the blocks that were finished."""
    before = finished(out)
    ranks = [start_rank(out, path, rank, 2) for rank in range(2)]
    goal = FILES if after_the_last else rng.integers(len(before), FILES + 1)
    while len(finished(out)) < goal and any(rank.is_alive() for rank in ranks):
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.5 if goal == FILES else 0.05))
    both = after_the_last or rng.integers(2) == 1
    for rank in ranks if both else ranks[: rng.integers(1, 3)][-1:]:
        rank.kill()
    assert before.items() <= finished(out).items(), "what was finished was made again"
    before = finished(out)
    assert set(end(*ranks)) <= {0, -signal.SIGKILL}
    return before


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.long] if seed >= 2 else []) for seed in range(23)]
)
def test_killed_at_a_random_moment(tmp_path, made, seed):
    path, expected = made
    kill_and_begin_again(tmp_path / "out", path, seed)
    assert contents(tmp_path / "out") == expected


def small(folder, count=6):
    """A manifest of a few short sounds."""
    for i in range(count):
        sound(folder / f"{i}.flac", 1.0 + i)
    return manifest(folder, *({"audio": f"{i}.flac", "category": {"bell": 2}} for i in range(count)))


def test_encoding_in_the_rank_gives_the_same(tmp_path):
    """The same as on a GPU: workers decode, and pass the result on in shared memory."""
    path = small(tmp_path)
    judged = FiltersConfig(max_silent=0.5)
    for name, device in (("workers", ""), ("rank", "cpu")):
        prepare_files(str(tmp_path / name), MODEL, path, 0, 2, judged, PrepareRank(device=device))
    assert contents(tmp_path / "workers") == contents(tmp_path / "rank")


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


def test_a_disk_without_room(tmp_path):
    """A limit on the size of files makes a write fail as a full disk does; with more room the same command
    continues."""
    path = small(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(
            OSError, match=r"File too large.*; finished work stays in .*out, and the same command continues"
        ):
            prepare_files(str(tmp_path / "out"), MODEL, path, seed=0, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
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
    rank = start_rank(tmp_path / "out", path)
    while len(finished(tmp_path / "out")) < 2:
        time.sleep(0.002)
    os.kill(rank.pid, signal.SIGUSR2)
    assert end(rank) == [ExitCode.STOPPED]
    assert len(finished(tmp_path / "out")) < FILES
    assert end(start_rank(tmp_path / "out", path)) == [0]
    assert contents(tmp_path / "out") == expected


def test_the_index_is_as_streaming_merges_it(tmp_path, made):
    from streaming.base.util import merge_index  # after trainer/data/streaming_library.py

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


def yield_or_end(task):
    """A worker's function: the task, or the end of its process by the signal of that number."""
    if task < 100:
        os.kill(os.getpid(), task)
    yield task


def test_a_process_that_a_file_ends():
    tasks = deque([100, int(signal.SIGSEGV), 101])
    with WorkerPool(yield_or_end, 1) as pool:
        found = list(pool.run(lambda: tasks.popleft() if tasks else None))
    assert [(m.task, m.crash if isinstance(m, TaskEnd) else m.value) for m in found if m] == [
        (100, 100),
        (100, ""),
        (signal.SIGSEGV, "SIGSEGV"),
        (101, 101),
        (101, ""),
    ]


def test_a_process_that_is_ended_from_outside():
    tasks = deque([int(signal.SIGTERM)])
    message = r"a worker process was killed \(SIGTERM\) at 15"
    with WorkerPool(yield_or_end, 2) as pool, pytest.raises(ChildProcessError, match=message):
        list(pool.run(lambda: tasks.popleft() if tasks else None))
