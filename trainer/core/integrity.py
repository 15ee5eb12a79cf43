"""A folder whose `manifest.json` names its files with sizes and hashes, and holds its own: a checkpoint, weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from .cli import ExitCode
from .files import hash_file, ignore, write_json

MANIFEST = "manifest.json"
FORMAT = 1


class ManifestError(ValueError):
    """A manifest is missing, damaged or of another format; the message names it."""


class ChangedError(ValueError):
    """A file is not as its manifest says; the message names it."""

    exit_code = ExitCode.CORRUPT


def entry(file: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"bytes": file.stat().st_size, "xxh3": hash_file(file)}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """`manifest["files"]` holds an `entry` for each file, by its path in the folder."""
    write_json(folder / MANIFEST, _sealed(manifest | {"format": FORMAT}))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises ManifestError when it is missing, damaged, of another format, or cannot be read."""
    file = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
        if manifest["format"] != FORMAT:
            raise ManifestError(f"{folder}: format {manifest['format']}, this version reads {FORMAT}")
        if manifest.pop("xxh3") != _hash(manifest):
            raise ManifestError(f"{file} has changed: its hash is not the one in it")
        return manifest
    except FileNotFoundError:
        raise ManifestError(f"{file} is missing") from None
    except OSError as error:
        raise ManifestError(_unreadable(file, error)) from None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ManifestError(f"{file} is damaged: {error!r}") from None


def manifest_fault(folder: Path) -> str:
    """How a manifest differs from one that was just written, be it by a blank, or ""."""
    try:
        return text_fault(folder / MANIFEST, _sealed(read_manifest(folder)))
    except ManifestError as error:
        return str(error)


def text_fault(file: Path, value: Any) -> str:
    """Whether a file of JSON is not what `files.write_json` makes of a value: a changed blank changes no value, and
    yet something changed it."""
    same = file.read_text() == json.dumps(value, indent=1) + "\n"
    return "" if same else f"{file} has changed: other blanks or another order"


def file_fault(file: Path, entry: dict[str, Any], advance: Callable[[int], object] = ignore) -> str:
    """How a file differs from what a manifest says of it, or ""; `advance` hears of bytes as they are read."""
    try:
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{file} has {file.stat().st_size} bytes, its manifest says {entry['bytes']}"
        if hash_file(file, advance=advance) != entry["xxh3"]:
            return f"{file} has changed: its hash is not the manifest's"
    except OSError as error:  # of the disk, or no right to read it: as good as damaged
        return _unreadable(file, error)
    return ""


def _unreadable(file: Path, error: OSError) -> str:
    return f"{file} cannot be read: {(error.strerror or str(error)).lower()}"


def _sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest | {"xxh3": _hash(manifest)}


def _hash(manifest: dict[str, Any]) -> str:
    return str(xxhash.xxh3_128(json.dumps(manifest)).hexdigest())
