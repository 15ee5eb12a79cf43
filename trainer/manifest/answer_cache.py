"""The answers of a model, written to disk at once, so that nothing is asked twice after an interruption."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

BUSY = 60.0  # seconds to wait for another process that writes


@dataclass(frozen=True)
class CachedAnswer:
    """`text` is the accepted answer; empty if there is none, and `reason` says why."""

    text: str
    reason: str = ""


class AnswerCache:
    """A file of answers by key, for several threads and processes; close it at the end. Raises OSError if the disk is
    full or another process does not let go of the file."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        try:
            with self._explain():
                self._file = sqlite3.connect(path, BUSY, check_same_thread=False, isolation_level=None)
                self._file.execute("create table if not exists answers (key text primary key, text text, reason text)")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: not a file of answers ({error}); move it away to start again") from error

    def get(self, key: str) -> CachedAnswer | None:
        with self._lock, self._explain():
            row = self._file.execute("select text, reason from answers where key = ?", (key,)).fetchone()
        return None if row is None else CachedAnswer(*row)

    def put(self, key: str, answer: CachedAnswer) -> None:
        """Save an answer; it is on the disk when this returns."""
        with self._lock, self._explain():
            self._file.execute("insert or replace into answers values (?, ?, ?)", (key, answer.text, answer.reason))

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(f"{self._path}: {error}; earlier answers are kept, and the same command continues") from error
