"""Files that appear whole or not at all."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash


def write_text(path: Path, text: str) -> None:
    """Replaces `path` at once, and makes its folder: a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text)
    sync(beside)
    os.replace(beside, path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def sync(path: Path) -> None:
    """Waits until a file or folder has reached the disk, so that a power cut cannot empty what was published."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def ignore(count: int) -> None:
    """For whoever need not hear how many bytes were read."""


def hash_file(file: Path, new: Callable[[], Any] = xxhash.xxh3_128, advance: Callable[[int], object] = ignore) -> str:
    """Of its bytes; `advance` hears how many were read, block by block."""
    digest, block = new(), memoryview(bytearray(1 << 20))  # which stays in a core's cache from read to hash
    with file.open("rb", buffering=0) as handle:
        while count := handle.readinto(block):
            digest.update(block[:count])
            advance(count)
    return str(digest.hexdigest())
