"""Files that appear whole or not at all."""

import json
import os
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


def hash_file(file: Path) -> str:
    """Of its bytes."""
    digest = xxhash.xxh3_128()
    with file.open("rb") as handle:
        while block := handle.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
