"""The speed of `verify`, against a plain read of the same files and the hash alone, taking turns."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import xxhash

from ..checkpoint.verify import verify
from .summary import SPREAD_COLUMNS, format_table, spread

BLOCK = 1 << 20


def measure(path: Path, rounds: int) -> str:
    """GB/s of each as text, read from the disk: the system's cache of the files is dropped before each turn.

    Raises ValueError if there is nothing to verify, or it is damaged.
    """
    if rounds < 1:
        raise ValueError(f"--rate {rounds}: give 1 round or more")
    files = [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    speeds: dict[str, list[float]] = {"read": [], "verify": [], "hash": []}
    acts: tuple[Callable[[], None], ...] = (
        lambda: _read(files),
        lambda: verify(path, lambda line: None),
        lambda: _hash(size),
    )
    for _ in range(rounds):
        for values, act in zip(speeds.values(), acts, strict=True):
            _drop_cache(files)
            begin = time.perf_counter()
            act()
            values.append(size / 1e9 / (time.perf_counter() - begin))
    triples = zip(speeds["verify"], speeds["read"], speeds["hash"], strict=True)
    speeds["verify / slower of the others"] = [verified / min(read, hashed) for verified, read, hashed in triples]
    rows = [{"name": name, **spread(values)} for name, values in speeds.items()]
    title = f"{len(files)} files, {size / 1e9:.2f} GB, GB/s, {rounds} rounds"
    return "\n".join([title, *format_table(rows, SPREAD_COLUMNS)])


def _drop_cache(files: list[Path]) -> None:
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def _read(files: list[Path]) -> None:
    block = bytearray(BLOCK)
    for file in files:
        with file.open("rb", buffering=0) as handle:
            while handle.readinto(block):
                pass


def _hash(size: int) -> None:
    block, digest = os.urandom(BLOCK), xxhash.xxh3_128()
    for _ in range(-(-size // BLOCK)):
        digest.update(block)
