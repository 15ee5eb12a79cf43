"""The progress of makers: a bar; without a terminal, a line now and then."""

import sys
import time

from tqdm import tqdm

LINE = 60.0  # seconds between two lines without a terminal


class Progress:
    """Of `total` lines, `done` were finished before. A context manager."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._before = total, done
        self._lines = self._clips = 0
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm(total=total, initial=done, unit=" files", disable=None)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, lines: int, clips: int) -> None:
        """Count what was finished now."""
        self._lines, self._clips = self._lines + lines, self._clips + clips
        now = time.monotonic()
        seconds, done = now - self._start, self._before + self._lines
        speed = f"{self._clips / max(seconds, 1e-3):.1f} clips/s"
        self._bar.set_postfix_str(speed, refresh=False)
        self._bar.update(lines)
        if self._bar.disable and now - self._last_line >= LINE:
            self._last_line = now
            left = _format_duration((self._total - done) * seconds / self._lines) if self._lines else "unknown"
            print(f"{done} of {self._total} files, {speed}, time left {left}", file=sys.stderr, flush=True)


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
