"""Verifies that checkpoints, shards, pairs and weights on a disk are as they were written. Reads every byte of them.

Checkpoints and weights have a manifest with the hash of every file, shards an index. Manifest and index contain their
own hash. Files that a run writes for people (metrics, TensorBoard, config.json) have no hash and are not verified.
"""

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
from ..core.english import amount
from ..core.integrity import MANIFEST, ManifestError, file_fault, manifest_fault, read_manifest, text_fault, with_hash
from ..cost.role_bytes import readable
from ..data import pairs, shards
from . import load

THREADS = 4  # files at a time
NO_MANIFEST = (
    "nothing tells whether these weights are as they were written: convert the run again with launch/convert.py"
)
Advance = Callable[[int], object]  # is called with the number of bytes that were read


class DamageFoundError(ValueError):
    """Files are damaged; the message counts them, and each has been reported."""

    exit_code = ExitCode.CORRUPT


@dataclass(frozen=True)
class FileCheck:
    path: Path
    fault: Callable[[Advance], str]  # returns what is wrong with the file, or ""
    bytes: int = 0


def verify(path: Path, say: Callable[[str], None]) -> None:
    """Verifies everything under `path`. Calls `say` for each damaged file and once for each intact folder.

    Raises DamageFoundError if something is damaged, ValueError if there is nothing to verify.
    """
    folders = [(folder, list(checks)) for folder, checks in _folders(path, set())]
    checks = [check for _, several in folders for check in several]
    if not checks:
        raise ValueError(f"{path} holds no run, checkpoint, shards, pairs or weights; give such a folder")
    lock, damaged, size = threading.Lock(), 0, sum(check.bytes for check in checks)
    with (
        tqdm(total=size, unit="B", unit_scale=True, desc=path.name, leave=False, disable=None) as bar,
        ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool,
    ):

        def advance(count: int) -> None:
            with lock:
                bar.update(count)

        results = pool.map(lambda check: _fault(check, advance), checks)
        for folder, several in folders:
            faults = [fault for fault in (next(results) for _ in several) if fault]
            for fault in faults:
                say(f"damaged: {fault}")
            if not faults:
                say(
                    f"good: {folder}, {amount(len(several), 'file')}, {readable(sum(check.bytes for check in several))}"
                )
            damaged += len(faults)
    if damaged:
        raise DamageFoundError(f"{damaged} of {len(checks)} files under {path} are damaged or do not belong there")


def _fault(check: FileCheck, advance: Advance) -> str:
    """The fault of a file, also if it cannot be read."""
    try:
        return check.fault(advance)
    except (ValueError, OSError, KeyError, TypeError) as error:
        named = str(check.path.parent) in str(error)
        return str(error) if named else f"{check.path} is not what was written there: {error!r}"


def _folders(path: Path, seen: set[Path]) -> Iterator[tuple[Path, Iterator[FileCheck]]]:
    """Every folder under `path` that can be verified, with its checks. Follows links, once."""
    if not path.is_dir() or path.resolve() in seen:
        return
    seen.add(path.resolve())
    if (path / "features.json").is_file() or (path / "index.json").is_file():
        yield path, _shard_folder(path)
    elif (path / MANIFEST).is_file() or path.parent.name == load.FOLDER:
        yield path, _manifest_folder(path)
    elif (path / WEIGHTS).is_file():
        yield path, iter([FileCheck(path / MANIFEST, lambda _: f"{path / MANIFEST} is missing; {NO_MANIFEST}")])
    else:
        if (path / pairs.PAIRS_FILE).exists():
            yield path / pairs.PAIRS_FILE, iter([_small_file(path / pairs.PAIRS_FILE, lambda: _pairs_fault(path))])
        if (path / load.LATEST).exists() or load.list_checkpoints(path):
            yield path / load.LATEST, iter([_small_file(path / load.LATEST, lambda: _latest_fault(path))])
        for folder in sorted(path.iterdir()):
            if not (folder.name.startswith(".") or ".partial" in folder.name):  # unfinished, and never read
                yield from _folders(folder, seen)


def _manifest_folder(folder: Path) -> Iterator[FileCheck]:
    """The checks of a checkpoint or of weights."""
    yield _small_file(folder / MANIFEST, lambda: manifest_fault(folder))
    try:
        files = read_manifest(folder)["files"]
    except ManifestError:
        return  # the first check reports it
    for name, entry in sorted(files.items()):
        yield FileCheck(folder / name, partial(file_fault, folder / name, entry), _size(folder / name))
    if WEIGHTS not in files:  # people may keep other files with weights
        known = {folder / name for name in (MANIFEST, *files)}
        yield from _unlisted(_files(folder) - known, MANIFEST)


def _shard_folder(folder: Path) -> Iterator[FileCheck]:
    index, features = folder / "index.json", folder / "features.json"
    yield FileCheck(features, lambda _: _index_fault(folder), _size(index) + _size(features))
    try:
        listed = shards.read_index(folder)
    except (ValueError, OSError):
        return  # the first check reports it
    files = {folder / shard["raw_data"]["basename"]: shard for shard in listed}
    for file, shard in files.items():
        yield FileCheck(file, partial(_shard_fault, folder, shard), _size(file))
    yield from _unlisted(_files(folder) - {index, features, *files}, index.name)


def _unlisted(files: set[Path], listing: str) -> Iterator[FileCheck]:
    def fault(file: Path) -> str:
        return f"{file} does not belong there: {listing} does not list it"

    for file in sorted(files):
        yield _small_file(file, partial(fault, file))


def _small_file(file: Path, fault: Callable[[], str]) -> FileCheck:
    """The check of a file that is read at once."""
    return FileCheck(file, lambda _: fault(), _size(file))


def _shard_fault(folder: Path, shard: dict[str, Any], advance: Advance) -> str:
    shards.check_shard(folder, shard, hashes=True, advance=advance)
    return ""


def _index_fault(folder: Path) -> str:
    """The fault of features.json or index.json."""
    shards.read_index(folder)
    return text_fault(folder / "features.json", strict.parse_json((folder / "features.json").read_text()))


def _pairs_fault(folder: Path) -> str:
    return text_fault(folder / pairs.PAIRS_FILE, strict.to_dict(pairs.read_pair_settings(folder)))


def _latest_fault(run: Path) -> str:
    """The fault of `latest.json`, also if the checkpoint that was saved last is gone."""
    file, newest = run / load.LATEST, next(iter(load.list_checkpoints(run)), None)
    step = int(strict.parse_json(file.read_text())["step"])
    if newest is None or load.step_of(newest) < step:
        return f"{file}: step {step} was saved last, and its checkpoint is gone"
    return text_fault(file, with_hash({"step": step}))


def _files(folder: Path) -> set[Path]:
    return {file for file in folder.rglob("*") if not file.is_dir()}


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
