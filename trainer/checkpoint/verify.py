"""Whether what lies on a disk is what was written: checkpoints, shards, pairs, weights. Reads every byte of them.

Checkpoints and weights have a manifest with the hash of every file, shards an index; manifest and index are hashed
themselves. What a run writes for people to read (metrics, TensorBoard, config.json) has no hash and is not looked at.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...models import strict
from ...models.audiox import WEIGHTS
from ..core.cli import ExitCode
from ..core.integrity import MANIFEST, ManifestError, file_fault, manifest_fault, read_manifest, text_fault
from ..cost.role_bytes import readable
from ..data import pairs, shards
from . import load

THREADS = 4  # files at a time
UNSEALED = "nothing tells whether these weights are as they were written: export them again with launch/convert.py"
Advance = Callable[[int], object]


class FoundDamageError(ValueError):
    """Something is damaged; the message counts it, and each was said."""

    exit_code = ExitCode.CORRUPT


@dataclass(frozen=True)
class Part:
    """A file that is looked at as a whole."""

    path: Path
    fault: Callable[[Advance], str]  # what is wrong with it, or ""; tells of bytes as it reads them
    bytes: int = 0


def verify(path: Path, say: Callable[[str], None]) -> None:
    """Looks at everything under `path`; `say` hears of each damaged part and a line about each whole folder.

    Raises FoundDamageError when something is damaged, ValueError when there is nothing to look at.
    """
    found = [(folder, list(parts)) for folder, parts in _folders(path, set())]
    parts = [part for _, several in found for part in several]
    if not parts:
        raise ValueError(f"{path} holds no run, checkpoint, shards, pairs or weights; give such a folder")
    lock, damaged, size = threading.Lock(), 0, sum(part.bytes for part in parts)
    with (
        tqdm(total=size, unit="B", unit_scale=True, desc=path.name, leave=False, disable=None) as bar,
        ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool,
    ):

        def advance(count: int) -> None:
            with lock:
                bar.update(count)

        results = pool.map(lambda part: _fault(part, advance), parts)
        for folder, several in found:
            faults = [fault for fault in (next(results) for _ in several) if fault]
            for fault in faults:
                say(f"damaged: {fault}")
            if not faults:
                files = f"{len(several)} {'file' if len(several) == 1 else 'files'}"
                say(f"good: {folder}, {files}, {readable(sum(part.bytes for part in several))}")
            damaged += len(faults)
    if damaged:
        raise FoundDamageError(f"{damaged} of {len(parts)} files under {path} are damaged or do not belong there")


def _fault(part: Part, advance: Advance) -> str:
    """What is wrong with a part, also where it cannot be read."""
    try:
        return part.fault(advance)
    except (ValueError, OSError, KeyError, TypeError) as error:
        named = str(part.path.parent) in str(error)
        return str(error) if named else f"{part.path} is not what was written there: {error!r}"


def _folders(path: Path, seen: set[Path]) -> Iterator[tuple[Path, Iterator[Part]]]:
    """Everything that can be verified under a folder, as it comes; links are followed, once."""
    if not path.is_dir() or path.resolve() in seen:
        return
    seen.add(path.resolve())
    if (path / "features.json").is_file() or (path / "index.json").is_file():
        yield path, _shards(path)
    elif (path / MANIFEST).is_file() or path.parent.name == load.FOLDER:
        yield path, _sealed(path)
    elif (path / WEIGHTS).is_file():
        yield path, iter([Part(path / MANIFEST, lambda _: f"{path / MANIFEST} is missing; {UNSEALED}")])
    else:
        if (path / pairs.PAIRS_FILE).exists():
            yield path / pairs.PAIRS_FILE, iter([_small(path / pairs.PAIRS_FILE, lambda: _pairs_fault(path))])
        if (path / load.LATEST).exists() or load.list_checkpoints(path):
            yield path / load.LATEST, iter([_small(path / load.LATEST, lambda: _latest_fault(path))])
        for folder in sorted(path.iterdir()):
            if not (folder.name.startswith(".") or ".partial" in folder.name):  # never finished: nobody reads it
                yield from _folders(folder, seen)


def _sealed(folder: Path) -> Iterator[Part]:
    """A checkpoint or weights."""
    yield _small(folder / MANIFEST, lambda: manifest_fault(folder))
    try:
        files = read_manifest(folder)["files"]
    except ManifestError:
        return  # which is the first part's fault
    for name, entry in sorted(files.items()):
        yield Part(folder / name, partial(file_fault, folder / name, entry), _size(folder / name))
    if WEIGHTS not in files:  # beside weights people keep what they like
        known = {folder / name for name in (MANIFEST, *files)}
        yield from _strangers(_files(folder) - known, MANIFEST)


def _shards(folder: Path) -> Iterator[Part]:
    index, features = folder / "index.json", folder / "features.json"
    yield Part(features, lambda _: _index_fault(folder), _size(index) + _size(features))
    try:
        listed = shards.read_index(folder)
    except (ValueError, OSError):
        return  # which is the first part's fault
    files = {folder / shard["raw_data"]["basename"]: shard for shard in listed}
    for file, shard in files.items():
        yield Part(file, partial(_shard_fault, folder, shard), _size(file))
    yield from _strangers(_files(folder) - {index, features, *files}, index.name)


def _strangers(files: set[Path], where: str) -> Iterator[Part]:
    def fault(file: Path) -> str:
        return f"{file} does not belong there: {where} does not list it"

    for file in sorted(files):
        yield _small(file, partial(fault, file))


def _small(file: Path, fault: Callable[[], str]) -> Part:
    """One that is read at once."""
    return Part(file, lambda _: fault(), _size(file))


def _shard_fault(folder: Path, shard: dict[str, Any], advance: Advance) -> str:
    shards.check_shard(folder, shard, hashes=True, advance=advance)
    return ""


def _index_fault(folder: Path) -> str:
    """Of features.json and index.json."""
    shards.read_index(folder)
    return text_fault(folder / "features.json", json.loads((folder / "features.json").read_text()))


def _pairs_fault(folder: Path) -> str:
    return text_fault(folder / pairs.PAIRS_FILE, strict.to_dict(pairs.read_pair_settings(folder)))


def _latest_fault(run: Path) -> str:
    """Of `latest.json`: a step that was saved last, and is gone."""
    file, newest = run / load.LATEST, next(iter(load.list_checkpoints(run)), None)
    step = int(json.loads(file.read_text())["step"])
    if newest is None or load.step_of(newest) < step:
        return f"{file}: step {step} was saved last, and its checkpoint is gone"
    return text_fault(file, {"step": step})


def _files(folder: Path) -> set[Path]:
    return {file for file in folder.rglob("*") if not file.is_dir()}


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
