"""The answers of a model, written to disk at once, so that nothing is asked twice after an interruption."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock


@dataclass(frozen=True)
class CachedAnswer:
    """`text` is what was accepted; empty where nothing was, and `reason` says why."""

    text: str
    reason: str = ""


class AnswerCache:
    """A file of answers by key, for several threads; close it at the end. Raises OSError where the disk is full or
    another process holds the file."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        try:
            with self._saying():
                self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
                self._file.execute("create table if not exists answers (key text primary key, text text, reason text)")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: not a file of answers ({error}); move it away to begin anew") from error

    def get(self, key: str) -> CachedAnswer | None:
        with self._lock, self._saying():
            row = self._file.execute("select text, reason from answers where key = ?", (key,)).fetchone()
        return None if row is None else CachedAnswer(*row)

    def put(self, key: str, answer: CachedAnswer) -> None:
        """On disk when this returns."""
        with self._lock, self._saying():
            self._file.execute("insert or replace into answers values (?, ?, ?)", (key, answer.text, answer.reason))

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _saying(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(f"{self._path}: {error}; what was answered is kept, and the same command goes on") from error
