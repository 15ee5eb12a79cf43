"""Answers of a model stay on the disk, for threads and processes."""

import sqlite3

import pytest

from audiox_trainer.trainer.manifest.answer_cache import AnswerCache, CachedAnswer


def test_answers_are_kept(tmp_path):
    answers = AnswerCache(tmp_path / "a")
    answers.put("k", CachedAnswer("{}"))
    answers.put("r", CachedAnswer("", "because"))
    other = AnswerCache(tmp_path / "a")  # the first one is as if it had been killed
    assert (other.get("k"), other.get("r"), other.get("x")) == (CachedAnswer("{}"), CachedAnswer("", "because"), None)
    (tmp_path / "b").write_text("not a file of answers at all, and longer than the header of one" * 20)
    with pytest.raises(ValueError, match="not a file of answers"):
        AnswerCache(tmp_path / "b")


def test_answers_that_another_process_holds(tmp_path):
    answers = AnswerCache(tmp_path / "a")
    other = sqlite3.connect(tmp_path / "a", isolation_level=None)
    other.execute("begin exclusive")
    answers._file.execute("pragma busy_timeout = 10")
    for act in (lambda: answers.put("k", CachedAnswer("{}")), lambda: answers.get("k")):
        with pytest.raises(OSError, match="/a: database is locked; earlier answers are kept, and the same command"):
            act()
    with pytest.raises(OSError, match="none/a: unable to open"):
        AnswerCache(tmp_path / "none/a")
