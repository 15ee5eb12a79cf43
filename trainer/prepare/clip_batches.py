"""Put the clips of a block into batches that depend on the block alone, in whatever order its files come in.

A full batch holds clips of one file, and leaves as soon as it is full. The last clips of a file, fewer than a batch,
wait until it has ended well; those of all files are then put together in the order of the manifest. So a file that
fails on the way changes nothing for others, and a file of one clip does not cost a batch of its own.
"""

from collections import deque
from collections.abc import Iterator, Sequence

from ..manifest.manifest import ManifestEntry
from ..media.clips import Clip
from .encode import LineClip

BATCH = 8  # clips; decides the result. With 10 s and 224-pixel video they take 360 MB


class ClipBatches:
    """The batches of a block with these lines."""

    def __init__(self, lines: Sequence[int], size: int = BATCH) -> None:
        self._size = size
        self._order = deque(lines)  # whose last clips are not in `_shared` yet
        self._open: dict[int, list[LineClip]] = {}
        self._ended: dict[int, list[LineClip]] = {}
        self._shared: dict[bool, list[LineClip]] = {False: [], True: []}  # without and with pictures

    @property
    def waiting(self) -> int:
        """Files that have ended and wait for an earlier one."""
        return len(self._ended)

    def add(self, entry: ManifestEntry, clips: Sequence[Clip]) -> Iterator[list[LineClip]]:
        """The next clips of a file; yields the batches that are full now."""
        held = self._open.setdefault(entry.line, [])
        held += [(entry, clip) for clip in clips]
        while len(held) >= self._size:
            yield _take(held, self._size)

    def discard(self, line: int) -> None:
        """Forget the clips of a file that is tried again or left out; call `end` as well once it has ended."""
        self._open.pop(line, None)

    def end(self, line: int) -> Iterator[list[LineClip]]:
        """A file has ended; yields the batches that are full now, and after the last file the rest."""
        self._ended[line] = self._open.pop(line, [])
        while self._order and self._order[0] in self._ended:
            for line_clip in self._ended.pop(self._order.popleft()):
                shared = self._shared[len(line_clip[1].images) > 0]
                shared.append(line_clip)
                if len(shared) == self._size:
                    yield _take(shared, self._size)
        for shared in self._shared.values():
            if shared and not self._order:
                yield _take(shared, self._size)


def _take(clips: list[LineClip], count: int) -> list[LineClip]:
    taken = clips[:count]
    del clips[:count]
    return taken
