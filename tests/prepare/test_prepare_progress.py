"""The progress that ranks show together, and the few requests that it costs."""

import json
import time
from dataclasses import asdict

import pytest

from audiox_trainer.trainer.data.storage import FolderStore
from audiox_trainer.trainer.prepare import ranks as module
from audiox_trainer.trainer.prepare.ranks import PreparationProgress, RankHeartbeat, Ranks


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_a_line_says_how_fast_and_how_long_still(clock, capsys):
    progress = PreparationProgress(total=1000, done=400)
    clock.now += 30
    progress.update(lines=100, clips=90, ranks=2)
    assert capsys.readouterr().err == "", "not every few seconds"
    clock.now += 30
    progress.update(lines=200, clips=150, ranks=2)
    # 200 files in a minute, and 400 are left.
    assert capsys.readouterr().err == "600 of 1000 files, 2.5 clips/s on 2 ranks, time left 0:02:00\n"
    clock.now += 60
    progress.update(lines=0, clips=0, ranks=1)
    assert capsys.readouterr().err == "400 of 1000 files, 0.0 clips/s on 1 rank, time left unknown\n"
    progress.close()


def announce(store, rank, lines, clips, beat):
    status = RankHeartbeat(lines=lines, clips=clips, heartbeat=beat)
    store.write(f"work/ranks/{rank:05d}.json", json.dumps(asdict(status)).encode())


class Shown(PreparationProgress):
    def __init__(self, total, done):
        super().__init__(total, done)
        self.seen = []

    def update(self, *said):
        self.seen.append(said)


def shown(tmp_path, monkeypatch, rank, others, then):
    """The progress that a rank shows after two announcements of others."""
    monkeypatch.setattr(module, "PreparationProgress", Shown)
    store = FolderStore(tmp_path / "out", 9)
    for other, (lines, clips) in others.items():
        announce(store, other, lines, clips, 1)
    with Ranks(FolderStore(tmp_path / "out", rank), rank, 4, patience=0.6) as ranks:
        ranks.own.lines, ranks.own.clips = 5, 7
        ranks.show(100, 30)
        for other, (lines, clips) in then.items():
            announce(store, other, lines, clips, 2)
        time.sleep(0.5 if rank == 0 else 1.8)
        return ranks._progress.seen


def test_what_others_had_finished_before_is_counted_once(tmp_path, monkeypatch):
    """Rank 1 had 20 lines when rank 0 first looked: they are among the 30 of the finished blocks. Rank 2 is of an
    earlier launch, rank 3 started again."""
    others, then = {1: (20, 40), 2: (50, 50), 3: (60, 60)}, {1: (26, 52), 3: (4, 5)}
    seen = shown(tmp_path, monkeypatch, 0, others, then)
    assert seen[-1] == (5 + 6 + 4, 7 + 12 + 5, 3)


def test_the_lowest_living_rank_shows_it(tmp_path, monkeypatch):
    """Rank 0 announced something once, and then nothing more."""
    assert shown(tmp_path, monkeypatch, 1, {0: (3, 3)}, {})[-1][:2] == (5, 7)


def test_a_rank_above_others_is_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(module.Ranks, "is_lowest", lambda self: False)
    assert shown(tmp_path, monkeypatch, 1, {0: (3, 3)}, {}) == []
