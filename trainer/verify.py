"""Whether what lies on a disk is what was written: runs, checkpoints, folders of shards, weights. Reads every byte."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from ..models.audiox import WEIGHTS
from . import checkpoint
from .checkpoint import CheckpointError
from .command import ExitCode
from .data import shards
from .generator import load_weights

THREADS = 4


class FoundDamageError(ValueError):
    """Something is damaged; the message counts it, and each was printed."""

    exit_code = ExitCode.CORRUPT


@dataclass(frozen=True)
class Part:
    """Something that is looked at as a whole."""

    name: str
    bytes: int
    fault: Callable[[], str]  # what is wrong with it, or ""


def verify(path: Path, say: Callable[[str], None]) -> None:
    """Looks at everything under `path`; `say` hears of each damaged part and a line about each whole folder.

    Raises FoundDamageError when something is damaged, ValueError when there is nothing to look at.
    """
    found = [(folder, list(parts)) for folder, parts in _folders(path)]
    if not found:
        raise ValueError(f"{path} holds no run, checkpoint, shards or weights; give such a folder")
    parts = [part for _, several in found for part in several]
    faults: dict[str, str] = {}
    with (
        tqdm(total=sum(part.bytes for part in parts), unit="B", unit_scale=True, desc=path.name, leave=False) as bar,
        ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool,
    ):
        for part, fault in zip(parts, pool.map(lambda part: part.fault(), parts), strict=True):
            bar.update(part.bytes)
            if fault:
                faults[part.name] = fault
    for folder, several in found:
        damaged = [faults[part.name] for part in several if part.name in faults]
        for fault in damaged:
            say(f"damaged: {fault}")
        size = sum(part.bytes for part in several) / 1e6
        if not damaged:
            say(f"good: {folder}, {len(several)} {'file' if len(several) == 1 else 'files'}, {size:.1f} MB")
    if faults:
        raise FoundDamageError(f"{len(faults)} of {len(parts)} files under {path} are damaged, see above")


def _folders(path: Path) -> Iterator[tuple[Path, Iterator[Part]]]:
    """Everything that can be verified under a folder, as it comes."""
    if (path / "features.json").is_file() or (path / "index.json").is_file():
        yield path, _shards(path)
    elif (path / "manifest.json").is_file() or path.parent.name == checkpoint.FOLDER:
        yield path, _checkpoint(path)
    elif (path / WEIGHTS).is_file():
        yield path, _weights(path)
    elif path.is_dir():
        for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.is_symlink()):
            if not (folder.name.endswith(".partial") or folder.name.startswith(".")):  # never finished: nobody reads it
                yield from _folders(folder)


def _checkpoint(folder: Path) -> Iterator[Part]:
    manifest = folder / "manifest.json"
    yield Part(str(manifest), _size(manifest), lambda: _manifest_fault(folder))
    try:
        files = checkpoint.read_manifest(folder)["files"]
    except CheckpointError:
        return
    for name, entry in sorted(files.items()):
        yield Part(str(folder / name), entry["bytes"], partial(checkpoint.file_fault, folder / name, entry))


def _manifest_fault(folder: Path) -> str:
    try:
        read = checkpoint.read_manifest(folder)
    except CheckpointError as error:
        return str(error)
    return _not_as_written(folder / "manifest.json", read | {"xxh3": checkpoint.seal(read)})


def _shards(folder: Path) -> Iterator[Part]:
    both = [folder / "features.json", folder / "index.json"]
    yield Part(str(both[0]), sum(map(_size, both)), lambda: _features_fault(folder))
    try:
        listed = json.loads(both[1].read_text())["shards"]
        raws = [shard["raw_data"] for shard in listed]
        entries = [(folder / raw["basename"], int(raw["bytes"]), raw["hashes"].get(shards.HASH)) for raw in raws]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # which is the first part's fault
    for file, size, digest in entries:
        yield Part(str(file), size, partial(_raised, partial(shards.check_hash, file, digest)))


def _features_fault(folder: Path) -> str:
    """Of features.json and index.json: what they say of each other and of the shards' sizes."""
    fault = _raised(lambda: shards.check_shards(folder, hashes=False))
    if fault:
        return fault
    file = folder / "features.json"
    return _not_as_written(file, json.loads(file.read_text()))


def _weights(folder: Path) -> Iterator[Part]:
    file = folder / WEIGHTS

    def fault() -> str:
        """Weights have no hash: they have to fit their configuration, and be finite."""
        try:
            model = load_weights(folder)
        except (ValueError, OSError, SafetensorError, RuntimeError) as error:
            return f"{file}: {error}"
        bad = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
        return f"{file}: {bad[0]} and {len(bad) - 1} more are not finite" if bad else ""

    yield Part(str(file), _size(file), fault)


def _not_as_written(file: Path, value: Any) -> str:
    """A changed blank means the same, and yet somebody or something changed it."""
    expected = json.dumps(value, indent=1) + "\n"
    return "" if file.read_text() == expected else f"{file} has changed: it is not as it was written"


def _raised(act: Callable[[], None]) -> str:
    try:
        act()
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
