"""Files and folders that appear whole or not at all, and their hashes."""

import contextlib
import glob
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash


@contextmanager
def atomic_output(out: Path, replace: bool = False) -> Iterator[Path]:
    """Yields a hidden path in the same folder, for the body to make a file or a folder there. It gets the name `out`
    when the body ends and is removed when the body raises.

    Raises ValueError where `out` exists, unless it may be replaced.
    """
    if not replace:
        refuse_existing(out)
    make_folder(out.parent)
    partial = partial_path(out)
    try:
        yield partial
        move_into_place(partial, out, replace)
        if not replace:  # whatever a killed process left of the same is of no use now
            for left in out.parent.glob(f".{glob.escape(_short(out.name))}.partial-*"):
                remove(left)
    finally:
        remove(partial)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, so that a power cut does not take them away with what is written there."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync(path.parent)


def private_folder(folder: Path) -> Path:
    """Makes a folder that only this user can write to, in a place that all users share, as /tmp.

    Raises ValueError if it belongs to another user, who would decide what is in it, or is open to others.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{folder} is a link or a file; have it removed, or set TMPDIR to a folder of your own")
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        whose = "this user, and others may write to it" if status.st_uid == os.getuid() else f"user {status.st_uid}"
        raise ValueError(f"{folder} belongs to {whose}; have it removed, or set TMPDIR to a folder of your own")
    return folder


def partial_path(out: Path) -> Path:
    """A hidden, unused name on the same file system as `out`."""
    return out.with_name(f".{_short(out.name)}.partial-{uuid.uuid4().hex[:8]}")


def _short(name: str) -> str:
    """A name to which something is added: with it a file system takes 255 bytes."""
    return name if len(os.fsencode(name)) <= 200 else name[:50]


def move_into_place(partial: Path, out: Path, replace: bool = False) -> None:
    """Renames a finished file or folder once all of it is on the disk, so that a power cut cannot empty it.

    Raises ValueError where `out` exists, unless it may be replaced. A reader never sees half of the old one.
    """
    for path in (*partial.rglob("*"), partial):
        sync(path)
    former = out.with_name(f"{_short(out.name)}.old.partial")
    if not replace:
        refuse_existing(out)
    elif out.is_dir():  # a rename replaces files only
        os.replace(out, former)
    os.replace(partial, out)
    sync(out.parent)
    if former.exists():
        remove(former)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out} exists already and is left as it is; remove it or choose another --out")


def write_text(path: Path, text: str) -> None:
    """Replaces `path` at once and makes its folder."""
    with atomic_output(path, replace=True) as partial:
        partial.write_text(text)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(value, indent=1) + "\n"


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def ignore(count: int) -> None:
    """Takes the number of bytes that were read, and does nothing."""


def hash_file(file: Path, new: Callable[[], Any] = xxhash.xxh3_128, advance: Callable[[int], object] = ignore) -> str:
    """The hash of a file's bytes. `advance` gets the number that were read, block by block."""
    digest, block = new(), memoryview(bytearray(1 << 20))  # which stays in a core's cache from read to hash
    with file.open("rb", buffering=0) as handle:
        while count := handle.readinto(block):
            digest.update(block[:count])
            advance(count)
    return str(digest.hexdigest())


def hash_json(value: dict[str, Any], own: str = "") -> str:
    """The hash of a JSON object without the key `own`, under which the object holds this hash."""
    rest = {name: part for name, part in value.items() if name != own}
    return str(xxhash.xxh3_128(json.dumps(rest, sort_keys=True)).hexdigest())
