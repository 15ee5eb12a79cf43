"""Where the blocks of a manifest lie in its file, so that each maker reads its own lines and nobody holds them all.

With blocks of 64 lines it takes half a byte per line.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from .manifest import ManifestEntry, read_entry


@dataclass(frozen=True)
class BlockTask:
    """A block of a manifest: its lines, as bytes in the file."""

    number: int
    offset: int  # of its first line in the file
    size: int  # bytes
    line: int  # number of its first line, from 1
    hash: int  # of its bytes

    def __str__(self) -> str:
        return f"block {self.number} (from line {self.line} on)"


@dataclass(frozen=True)
class ManifestIndex:
    """The blocks of a manifest of `lines` lines, empty ones not counted."""

    path: Path
    hash: str  # xxh3 of the file
    lines: int
    block_lines: int
    _blocks: NDArray[np.int64]  # (blocks, 4): offset, size, first line, hash of each

    def __len__(self) -> int:
        return len(self._blocks)

    def task(self, number: int) -> BlockTask:
        return BlockTask(number, *self._blocks[number].tolist())


def index_manifest(path: Path, block_lines: int, least_blocks: int) -> ManifestIndex:
    """An index of blocks of up to `block_lines` lines, or fewer if there would be less than `least_blocks`.

    Raises ValueError if the manifest is missing or empty.
    """
    digest, lines = xxhash.xxh3_128(), 0
    for text in _lines(path):
        digest.update(text)
        lines += bool(text.strip())
    if not lines:
        raise ValueError(f"manifest {path} holds no line; expected one JSON object per line")
    per_block = min(block_lines, -(-lines // least_blocks))
    blocks = np.array(list(_blocks(path, per_block)), np.int64)
    index = ManifestIndex(path, digest.hexdigest(), lines, per_block, blocks)
    if len(index) != -(-lines // per_block):
        raise ValueError(_changed(path))
    return index


def _blocks(path: Path, per_block: int) -> Iterator[tuple[int, int, int, int]]:
    offset = size = count = 0
    first, number = 1, 0
    digest = xxhash.xxh3_64()
    for number, text in enumerate(_lines(path), start=1):
        size += len(text)
        digest.update(text)
        count += bool(text.strip())
        if count == per_block:
            yield offset, size, first, _signed(digest)
            offset, size, count, first = offset + size, 0, 0, number + 1
            digest = xxhash.xxh3_64()
    if count:
        yield offset, size, first, _signed(digest)


def _signed(digest: xxhash.xxh3_64) -> int:
    return digest.intdigest() >> 1  # numpy's integers have a sign


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise ValueError(f"manifest {path}: {error.strerror}") from error


def read_block_lines(path: Path, task: BlockTask) -> Iterator[tuple[int, bytes]]:
    """The number and the bytes of each line of a block that is not empty.

    Raises ValueError if the file has changed since it was indexed.
    """
    with path.open("rb") as file:
        file.seek(task.offset)
        data = file.read(task.size)
    if _signed(xxhash.xxh3_64(data)) != task.hash:
        raise ValueError(_changed(path))
    for number, text in enumerate(io.BytesIO(data), start=task.line):
        if text.strip():
            yield number, text.rstrip(b"\r\n")


def read_block_entries(path: Path, task: BlockTask, allow_private: bool) -> list[ManifestEntry]:
    """The entries of a block; raises as `read_block_lines` and `read_entry`."""
    entries = (read_entry(path, number, text) for number, text in read_block_lines(path, task))
    return [replace(entry, allow_private=allow_private) for entry in entries]


def _changed(path: Path) -> str:
    return f"manifest {path} has changed while it was used; restore it, or choose another --out"
