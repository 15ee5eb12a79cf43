"""Folders of MDS shards: a writer that verifies what it wrote, and the checks before a run.

A folder appears under its name only when it is complete. The writer works in a hidden folder next to it, writes
`features.json` last, reads everything back, and renames. `record.py` has the schema.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import xxhash

from ...models import strict
from ...models.config import CodecConfig, TextConfig, VideoConfig
from ..core.cli import ExitCode
from ..core.files import (
    hash_file,
    hash_json,
    ignore,
    make_folder,
    move_into_place,
    partial_path,
    refuse_existing,
    remove,
    write_json,
)
from .record import COLUMNS, OPTIONAL, Record, to_columns, validate

FORMAT = 2
INDEX_KEYS = {"column_names", "column_encodings", "compression", "raw_data", "samples"}  # of a shard in index.json
SHARD_HASH = "xxh64"  # against damage, not attackers; several GB/s, so that a run can check at its start


class ShardError(ValueError):
    """A folder of shards is damaged, incomplete or of another kind; the message names the file."""


class DamagedError(ShardError):
    """A shard is missing, truncated or changed."""

    exit_code = ExitCode.CORRUPT


class BucketError(ShardError):
    """A bucket failed or did not answer; nothing is known about its shards."""

    exit_code = ExitCode.HUNG  # a restart may succeed


@dataclass(frozen=True)
class StreamFeatures:
    """`features.json`: the encoders that computed the features, and what the folder holds."""

    format: int
    codec: CodecConfig
    text: TextConfig
    video: VideoConfig | None
    samples: int
    domains: dict[str, int]  # samples of each domain
    seconds: float  # sum of the true lengths
    index_hash: str = ""  # xxh3 of index.json, which holds the hashes of the shards
    checksum: str = ""  # xxh3 of everything above


@dataclass(frozen=True)
class ShardGroup:
    """Finished shards: their entries for an index.json, and what they hold."""

    shards: tuple[dict[str, Any], ...]
    samples: int
    domains: dict[str, int]  # samples of each
    seconds: float


class ShardGroupWriter:
    """Writes records as MDS shards into a folder, which is no stream yet: it has no features.json."""

    def __init__(
        self, folder: Path, codec: CodecConfig, text: TextConfig, video: VideoConfig | None, size_limit: int = 1 << 26
    ) -> None:
        """Creates the folder. size_limit: bytes per shard, below 2**32."""
        self.folder = folder
        self.encoders = codec, text, video
        self._ids: set[str] = set()
        self._domains: Counter[str] = Counter()
        self._seconds = 0.0
        make_folder(folder.parent)
        folder.mkdir()
        from .streaming_library import MDSWriter

        self._mds = MDSWriter(columns=COLUMNS, out=str(folder), hashes=[SHARD_HASH], size_limit=size_limit)

    def __len__(self) -> int:
        return len(self._ids)

    def write(self, record: Record) -> None:
        """Raises ValueError for a record that `validate` refuses or whose id repeats; OSError."""
        codec, _, video = self.encoders
        record = validate(record, codec, video)
        if record.id in self._ids:
            raise ValueError(f"record {record.id!r} was already written to {self.folder}; ids must differ")
        self._mds.write(to_columns(record))
        self._ids.add(record.id)
        self._domains[record.domain] += 1
        self._seconds += record.seconds

    def finish(self) -> ShardGroup:
        """Write the rest and an index.json, and read every byte back. Raises OSError, ShardError."""
        self._mds.finish()
        part = ShardGroup(tuple(self._mds.shards), len(self._ids), dict(self._domains), self._seconds)
        for shard in part.shards:
            check_shard(self.folder, shard, hashes=True)
        return part

    def cancel(self) -> None:
        """Stop the writer, which would otherwise write an index into an unfinished folder at its end."""
        self._mds.cancel_future_jobs()


class ShardWriter:
    """Writes records into a new folder of MDS shards; a context manager.

    Leaving the context reads every shard back and then renames the finished folder to its name. When the body or the
    check raises, the unfinished folder is removed and nothing appears.

    Raises:
        ValueError: the folder exists, `validate` refuses a record, an id repeats, or nothing was written.
        OSError: the disk is full or not writable; existing files are untouched.
        ShardError: the shards read back differ from what was written.
    """

    def __init__(
        self, folder: Path, codec: CodecConfig, text: TextConfig, video: VideoConfig | None, size_limit: int = 1 << 26
    ) -> None:
        """size_limit: bytes per shard, below 2**32."""
        refuse_existing(folder)
        self._folder = folder
        self._partial = partial_path(folder)
        self._open = lambda: ShardGroupWriter(self._partial, codec, text, video, size_limit)

    def __enter__(self) -> Self:
        self._part = self._open()
        return self

    def write(self, record: Record) -> None:
        """Adds one record."""
        try:
            self._part.write(record)
        except OSError as error:
            raise self._disk_error(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._commit()
        except OSError as disk:
            raise self._disk_error(disk) from disk
        finally:
            self._part.cancel()
            remove(self._partial)

    def _commit(self) -> None:
        if not len(self._part):
            raise ValueError(f"no record was written to {self._folder}; an empty folder cannot be trained on")
        part = self._part.finish()
        features = stream_features([part], *self._part.encoders, hash_file(self._partial / "index.json"))
        write_json(self._partial / "features.json", strict.to_dict(features))
        check_shards(self._partial, hashes=False)
        move_into_place(self._partial, self._folder)

    def _disk_error(self, error: OSError) -> OSError:
        return OSError(
            error.errno,
            f"{error.strerror or error}: could not write sample {len(self._part)} of {self._folder}. The unfinished "
            f"folder is removed and nothing else was touched; free space there, or choose another folder",
        )


def index_json(parts: Iterable[ShardGroup]) -> str:
    """The index.json of a folder with these shards, as streaming's merge_index writes it."""
    return json.dumps({"version": 2, "shards": [shard for part in parts for shard in part.shards]}, sort_keys=True)


def stream_features(
    parts: Sequence[ShardGroup], codec: CodecConfig, text: TextConfig, video: VideoConfig | None, index_hash: str
) -> StreamFeatures:
    """The features.json of a folder with these shards; `index_hash` is that of its index.json."""
    domains: Counter[str] = Counter()
    for part in parts:
        domains.update(part.domains)
    samples, seconds = sum(part.samples for part in parts), sum(part.seconds for part in parts)
    features = StreamFeatures(FORMAT, codec, text, video, samples, dict(domains), seconds, index_hash)
    return replace(features, checksum=hash_json(strict.to_dict(features), "checksum"))


def read_features(path: Path) -> StreamFeatures:
    """Reads `features.json` of a shard folder.

    Raises:
        ShardError: it is missing, not JSON, of another format version, or its keys are not those of `StreamFeatures`.
    """
    raw = _read_json(path, "features.json")
    if raw.get("format") != FORMAT:
        found = raw.get("format")
        raise ShardError(f"{path / 'features.json'}: format {found!r}, not {FORMAT}; prepare the folder again")
    try:
        features: StreamFeatures = strict.parse(StreamFeatures, raw)
    except ValueError as error:
        raise ShardError(f"{path / 'features.json'}: {error}; prepare the folder again") from error
    if features.checksum != hash_json(strict.to_dict(features), "checksum"):
        raise DamagedError(f"{path / 'features.json'} has changed: its checksum is wrong; copy it again")
    return features


def check_shards(path: Path, hashes: bool) -> None:
    """Check that a folder is complete: streaming itself silently ends an epoch early if a shard is damaged.

    Always checks sizes and sample counts; with `hashes` every byte is read and compared with the hash in the index.

    Raises:
        ShardError: names the first file that is missing, truncated, changed or not of this format.
    """
    for shard in read_index(path):
        check_shard(path, shard, hashes)


def read_index(path: Path) -> list[dict[str, Any]]:
    """The shards in `index.json`, after checking it against `features.json`.

    Raises:
        ShardError: one of the two files is missing, changed or of another format.
    """
    features = read_features(path)
    shards = _read_json(path, "index.json").get("shards")
    if hash_file(path / "index.json") != features.index_hash:
        raise DamagedError(f"{path / 'index.json'} has changed: its hash is not that in features.json; copy it again")
    if not isinstance(shards, list) or not shards:
        raise ShardError(f"{path / 'index.json'}: lists no shards; prepare the folder again")
    for shard in shards:
        if not (isinstance(shard, dict) and shard.keys() >= INDEX_KEYS):
            raise ShardError(f"{path / 'index.json'}: no MDS index; prepare the folder again")
    total = sum(shard["samples"] for shard in shards)
    if total != features.samples:
        raise ShardError(f"{path}: index.json counts {total} samples, features.json {features.samples}")
    return shards


def check_shard(path: Path, shard: dict[str, Any], hashes: bool, advance: Callable[[int], object] = ignore) -> None:
    """Check one shard of the folder `path` against its entry in the index; `advance` is called with the bytes read.
    Raises as `check_shards`."""
    found = dict(zip(shard["column_names"], shard["column_encodings"], strict=True))
    if missing := COLUMNS.keys() - found.keys() - set(OPTIONAL):
        raise ShardError(
            f"{path / 'index.json'}: no column {', '.join(sorted(missing))}, there are {', '.join(found)}; prepare the "
            f"folder again"
        )
    if found != {name: COLUMNS[name] for name in COLUMNS if name in found} or shard["compression"]:
        raise ShardError(
            f"{path / 'index.json'}: columns {found}, compression {shard['compression']!r}; "
            f"expected uncompressed {COLUMNS}; prepare the folder again"
        )
    raw = shard["raw_data"]
    file = path / raw["basename"]
    if path not in file.parents or ".." in Path(raw["basename"]).parts or not file.is_file():
        raise DamagedError(f"{file} is missing; copy the folder again or prepare it again")
    size = file.stat().st_size
    if size != raw["bytes"]:
        raise DamagedError(f"{file} has {size} bytes, its index says {raw['bytes']}; copy or prepare it again")
    with file.open("rb", buffering=0) as handle:  # with a buffer a network file system sends megabytes
        samples = int(np.frombuffer(handle.read(4), "<u4")[0])
    if samples != shard["samples"]:
        raise DamagedError(
            f"{file} holds {samples} samples, its index says {shard['samples']}; copy or prepare it again"
        )
    if hashes:
        check_hash(file, raw["hashes"].get(SHARD_HASH), advance)


def check_hash(file: Path, expected: str | None, advance: Callable[[int], object] = ignore) -> None:
    """Read every byte of a shard. Raises DamagedError if it is missing or its hash is not that of the index."""
    try:
        actual = hash_file(file, xxhash.xxh64, advance)
    except FileNotFoundError:
        raise DamagedError(f"{file} is missing; copy the folder again or prepare it again") from None
    if actual != expected:
        raise DamagedError(f"{file} has changed: {SHARD_HASH} {actual}, its index {expected}; copy or prepare it again")


def _read_json(path: Path, name: str) -> dict[str, Any]:
    if not path.is_dir():
        raise ShardError(f"{path} is not a folder of shards; make one with launch/prepare.py")
    try:
        value = strict.parse_json((path / name).read_text())
    except FileNotFoundError as error:
        raise ShardError(
            f"{path / name} is missing: the folder is empty, incomplete or not made by launch/prepare.py"
        ) from error
    except ValueError as error:
        raise ShardError(f"{path / name} is not JSON ({error}); copy the folder again or prepare it again") from error
    if not isinstance(value, dict):
        raise ShardError(f"{path / name} holds a {type(value).__name__}, expected an object")
    return value
