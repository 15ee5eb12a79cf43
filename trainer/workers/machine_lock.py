"""Give one file all the memory of a machine: workers share a lock, and one that needs the machine takes it alone.

Two locked files in this user's temporary folder. Who wants to be alone holds the first, so that nobody new comes in,
and waits for the second, which all others share while they work. The system releases the locks of a killed process.
"""

import fcntl
import os
import tempfile
from pathlib import Path

from ..core.files import private_folder


class MachineLock:
    """Nothing here waits; ask again a moment later."""

    def __init__(self) -> None:
        folder = private_folder(Path(tempfile.gettempdir(), f"prepare-{os.getuid()}-lock"))
        self._entrance, self._room = (os.open(folder / name, os.O_RDWR | os.O_CREAT) for name in ("entrance", "room"))
        self._shared = False

    def share(self) -> bool:
        """Whether this process works next to others now."""
        if not self._shared and _lock(self._entrance, fcntl.LOCK_SH):
            self._shared = _lock(self._room, fcntl.LOCK_SH)
            fcntl.flock(self._entrance, fcntl.LOCK_UN)
        return self._shared

    def be_alone(self) -> bool:
        """Whether no other process works now. Call it again until it is so; nobody new comes in meanwhile."""
        self._shared = False
        return _lock(self._entrance, fcntl.LOCK_EX) and _lock(self._room, fcntl.LOCK_EX)

    def leave(self) -> None:
        self._shared = False
        for place in (self._room, self._entrance):
            fcntl.flock(place, fcntl.LOCK_UN)


def _lock(place: int, kind: int) -> bool:
    try:
        fcntl.flock(place, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
