"""Ranks that share a manifest, are killed, and begin again: the same samples, nothing made twice."""

import signal
import time

import numpy as np
import pytest

from audiox_turbo.trainer.data.prepare_files import prepare_files
from tests.preparing import MODEL, contents, manifest, sound, start_rank

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
    path = manifest(folder, *lines)
    prepare_files(str(folder / "out"), MODEL, path, seed=0, workers=2)
    return path, contents(folder / "out")


def finished(out):
    """When each block was finished."""
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
    """Kills one of two ranks, or both, when a random number of blocks is finished. Where one lives on, it makes what is
    left; then one rank or two begin again. -> the blocks that were finished before the kill."""
    rng = np.random.default_rng(seed)
    ranks = [start_rank(out, path, rank, 2) for rank in range(2)]
    goal = rng.integers(FILES)
    while len(finished(out)) < goal and any(rank.is_alive() for rank in ranks):
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.05))
    both = rng.integers(2) == 1
    for rank in ranks if both else ranks[: rng.integers(1, 3)][-1:]:
        rank.kill()
    before = finished(out)
    codes = end(*ranks)
    assert set(codes) <= {0, -signal.SIGKILL}
    again = int(rng.integers(1, 3))
    assert end(*(start_rank(out, path, rank, again) for rank in range(again))) == [0] * again
    assert before.items() <= finished(out).items(), "what was finished was made again"
    return before


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.long] if seed >= 3 else []) for seed in range(23)]
)
def test_killed_at_a_random_moment(tmp_path, made, seed):
    path, expected = made
    kill_and_begin_again(tmp_path / "out", path, seed)
    assert contents(tmp_path / "out") == expected
