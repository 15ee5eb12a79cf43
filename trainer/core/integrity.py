"""A folder whose `manifest.json` lists its files with sizes and hashes, and its own hash: a checkpoint, weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...models import strict
from .cli import ExitCode
from .files import hash_file, hash_json, ignore, json_text, write_json

MANIFEST = "manifest.json"
FORMAT = 1


class ManifestError(ValueError):
    """A manifest is missing, damaged or of another format; the message names it."""


class ChangedError(ValueError):
    """A file is not as its manifest says; the message names it."""

    exit_code = ExitCode.CORRUPT


def file_entry(file: Path) -> dict[str, Any]:
    """A file's line in a manifest."""
    return {"bytes": file.stat().st_size, "xxh3": hash_file(file)}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """`manifest["files"]` holds a `file_entry` for each file, by its path in the folder."""
    write_json(folder / MANIFEST, with_hash(manifest | {"format": FORMAT}))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises ManifestError when it is missing, damaged, of another format, or cannot be read."""
    file = folder / MANIFEST
    try:
        manifest: dict[str, Any] = strict.parse_json(file.read_text())
        if manifest["format"] != FORMAT:
            raise ManifestError(f"{folder}: format {manifest['format']}, this version reads {FORMAT}")
        if manifest.pop("xxh3") != hash_json(manifest):
            raise ManifestError(f"{file} has changed: its hash is not the one in it")
        if not all({"bytes", "xxh3"} <= entry.keys() for entry in manifest["files"].values()):
            raise ManifestError(f"{file} is damaged: a file without size or hash")
        return manifest
    except ManifestError:
        raise
    except FileNotFoundError:
        raise ManifestError(f"{file} is missing") from None
    except OSError as error:
        raise ManifestError(_unreadable(file, error)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{file} is damaged: {error!r}") from None


def manifest_fault(folder: Path) -> str:
    """The difference of a manifest from the text that was written, if only a blank; "" if there is none."""
    try:
        return text_fault(folder / MANIFEST, with_hash(read_manifest(folder)))
    except ManifestError as error:
        return str(error)


def text_fault(file: Path, value: Any) -> str:
    """Whether a JSON file differs from what `write_json` makes of the value: a changed blank changes no value, but
    something changed it."""
    return "" if file.read_text() == json_text(value) else f"{file} has changed: other blanks or another order"


def file_fault(file: Path, expected: dict[str, Any], advance: Callable[[int], object] = ignore) -> str:
    """The difference of a file from its entry in a manifest, or "". `advance` gets the number of bytes that were
    read."""
    try:
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{file} has {file.stat().st_size} bytes, its manifest says {expected['bytes']}"
        if hash_file(file, advance=advance) != expected["xxh3"]:
            return f"{file} has changed: its hash is not the manifest's"
    except OSError as error:  # a bad disk, or no permission: as good as damaged
        return _unreadable(file, error)
    return ""


def _unreadable(file: Path, error: OSError) -> str:
    return f"{file} cannot be read: {(error.strerror or str(error)).lower()}"


def with_hash(manifest: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with its own hash under the key xxh3."""
    return manifest | {"xxh3": hash_json(manifest)}
