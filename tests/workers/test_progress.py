"""The progress of a driver without a terminal."""

import pytest

from audiox_trainer.trainer.workers import progress as module
from audiox_trainer.trainer.workers.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_a_line_says_how_fast_and_how_long_still(clock, capsys):
    with Progress(total=1000, done=400) as progress:
        clock.now += 30
        progress.add(lines=100, clips=90)
        assert capsys.readouterr().err == "", "not every few seconds"
        clock.now += 30
        progress.add(lines=100, clips=60)
        # 200 files in a minute, and 400 are left.
        assert capsys.readouterr().err == "600 of 1000 files, 2.5 clips/s, time left 0:02:00\n"
