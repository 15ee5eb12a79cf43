"""A manifest: one JSON object a line, for each file (or segment of a file) that a user brings.

    {"audio": "wav/0001.wav", "captions": ["a dog barks twice"], "category": {"dog": 2}}
    {"video": "clips/7.mp4", "start": 30, "end": 50, "domain": "music", "genre": "jazz", "instruments": ["piano"]}

| key | value |
|---|---|
| `audio` | path, absolute or relative to the manifest, or an address such as https:// or s3:// that fsspec opens |
| `video` | likewise: pictures of the same moment, or one picture; without `audio` it gives the sound too |
| `captions` | list of texts, each describing the whole segment |
| `domain` | "audio" (default) or "music" |
| `start`, `end` | seconds: the segment of the file; default all of it |
| `caption` | one text, as a field of the paper's annotation |
| `category` | a name, or names with counts ({"dog": 2}; null where nothing can be counted) |
| `SED` | list of {"start", "end", "event"}, seconds from the segment's start |
| `time_relation` | names in order of time ("bell, kick, kick"), or a word such as "interleave" |
| `genre`, `mood` | text, for music |
| `instruments` | a name or a list of names, for music |
| `tempo` | beats a minute, for music |

Any other key is kept as it is under `annotation["extra"]`. `manifest.schema.json` beside this file says the same for
other programs, and is held against this reader by a test.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from ..core.addresses import ADDRESS
from ..core.credentials import redacted
from ..core.english import complaint_list, lines_wrong
from ..data.record import DOMAINS

SCHEMA = Path(__file__).with_name("manifest.schema.json")
_MUSIC_ONLY = ("genre", "mood", "instruments", "tempo")
_LARGEST = 1e9  # seconds, counts, beats a minute: more is a slip


@dataclass(frozen=True)
class ManifestEntry:
    """One line of a manifest. `annotation` has the fields that are given, `extra` among them."""

    line: int
    name: str  # the sound's path or address as it was written, without a credential
    audio: str  # absolute path, or address
    video: str | None
    domain: str
    start: float  # seconds
    end: float | None  # seconds; None: to the end of the file
    captions: list[str] = field(default_factory=list)
    annotation: dict[str, Any] = field(default_factory=dict)


def read_manifest(path: Path) -> list[ManifestEntry]:
    """Reads and checks every line; whether the files exist is not looked at, whether addresses can be opened at all
    (is the package there that s3:// needs?) is. Empty lines are skipped.

    Raises:
        ValueError: the manifest is missing or empty, or lines are not as the table above says; names the first of them.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"manifest {path}: {error.strerror}") from error
    entries, wrong = list[ManifestEntry](), list[str]()
    for number, text in enumerate(lines, start=1):
        if text.strip():
            try:
                entries.append(read_entry(path, number, text))
            except ValueError as error:
                wrong.append(str(error))
    if wrong:
        title = f"manifest {path}: {lines_wrong(len(wrong), len(wrong) + len(entries))}"
        raise ValueError(wrong[0] if len(wrong) == 1 else complaint_list(wrong, title))
    if not entries:
        raise ValueError(f"manifest {path} holds no line; expected one JSON object a line")
    return entries


def read_entry(path: Path, line: int, text: bytes) -> ManifestEntry:
    """One line of the manifest at `path`; raises ValueError as `read_manifest` does."""
    where = f"{path}:{line}"
    try:
        raw = json.loads(text.decode("utf-8-sig"), parse_constant=_no_constant, parse_float=_finite)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}): {text[:80]!r}; expected one object a line") from error
    if not isinstance(raw, dict):
        raise ValueError(
            f"{where}: {text[:80]!r} is a {type(raw).__name__}; expected an object such as "
            '{"audio": "a.wav", "captions": ["a dog barks"]}'
        )
    return parse_entry(where, path.parent, line, raw)


def parse_entry(where: str, folder: Path, line: int, raw: dict[str, Any]) -> ManifestEntry:
    """What an object says, with its relative paths in `folder`; raises ValueError that begins with `where`."""
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in raw.items():
        if key in _KEYS:
            values[key] = _checked(where, key, value)
        elif like := get_close_matches(key.lower(), _KEYS.keys() | {"sed"}, n=1, cutoff=0.85):
            # A slip would otherwise vanish among the extra keys.
            raise ValueError(f"{where}: key {key!r}; did you mean {'SED' if like[0] == 'sed' else like[0]!r}?")
        else:
            extra[key] = value
    return _assembled(where, folder, line, values, extra)


def _assembled(where: str, folder: Path, line: int, values: dict[str, Any], extra: dict[str, Any]) -> ManifestEntry:
    if "audio" not in values and "video" not in values:
        raise ValueError(f"{where}: neither 'audio' nor 'video'; one of them must name the file with the sound")
    domain = values.get("domain", "audio")
    for key in _MUSIC_ONLY:
        if key in values and domain != "music":
            raise ValueError(f'{where}: {key!r} belongs to music; add "domain": "music" or leave it out')
    start, end = values.get("start", 0.0), values.get("end")
    if end is not None and end <= start:
        raise ValueError(f"{where}: end {end} must be above start {start}")
    fields = ("caption", "category", "SED", "time_relation", *_MUSIC_ONLY)
    annotation = {key: values[key] for key in fields if key in values}
    if extra:
        annotation["extra"] = extra
    name: str = values["audio"] if "audio" in values else values["video"]
    places = {key: _place(where, folder, key, values[key]) for key in ("audio", "video") if key in values}
    return ManifestEntry(
        line=line,
        name=redacted(name) if ADDRESS.match(name) else name,
        audio=places.get("audio") or places["video"],
        video=places.get("video"),
        domain=domain,
        start=start,
        end=end,
        captions=values.get("captions", []),
        annotation=annotation,
    )


def _place(where: str, folder: Path, key: str, written: str) -> str:
    """-> an absolute path, or an address of a protocol that can be opened here."""
    found = ADDRESS.match(written)
    if found is None:
        return str(folder.absolute() / written)
    if found[1] in ("file", "local"):
        return _local_path(written)
    if problem := _protocol_problem(found[1]):
        raise ValueError(f"{where}: {key} is {redacted(written)!r}: {problem}")
    return written


@cache
def _protocol_problem(protocol: str) -> str:
    """Why addresses of a protocol cannot be opened; empty where they can."""
    import fsspec  # takes a tenth of a second, and most manifests hold paths alone

    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        return f"{protocol}:// needs another package: {error}"
    except ValueError:
        return f"fsspec knows no protocol {protocol!r}; expected a path, or an address such as https:// or s3://"
    return ""


def _local_path(address: str) -> str:
    from fsspec.implementations.local import LocalFileSystem

    return str(LocalFileSystem._strip_protocol(address))


def _checked(where: str, key: str, value: Any) -> Any:
    parse, allowed = _KEYS[key]
    try:
        return parse(value)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"{where}: {key} is {value!r}; expected {allowed}") from error


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is larger than any number that can be kept")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    value.encode()  # half of a surrogate pair is JSON, but no text
    return value


def _path(value: Any) -> str:
    path = _text(value)
    if "\0" in path:
        raise ValueError
    return path


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise ValueError
    return [_text(item) for item in value]


def _names(value: Any) -> list[str]:
    return [_text(value)] if isinstance(value, str) else _texts(value)


def _domain(value: Any) -> str:
    if value not in DOMAINS:
        raise ValueError
    return str(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
        raise ValueError
    return float(value)


def _tempo(value: Any) -> float:
    tempo = _number(value)
    if tempo == 0:
        raise ValueError
    return tempo


def _category(value: Any) -> dict[str, int | None]:
    """A name alone says that it sounds, not how often."""
    if isinstance(value, str):
        return {_text(value): None}
    counts: dict[str, int | None] = {}
    for name, count in value.items():
        counts[_text(name)] = None if count is None else _count(count)
    return counts


def _count(value: Any) -> int:
    count = _number(value)
    if count < 1 or not count.is_integer():
        raise ValueError
    return int(count)


def _events(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ValueError
    events = []
    for item in value:
        start, end = _number(item["start"]), _number(item["end"])
        if len(item) != 3 or end < start:
            raise ValueError
        events.append({"start": start, "end": end, "event": _text(item["event"])})
    return events


# What each key's value is read with, and how a message describes what is allowed.
_KEYS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "audio": (_path, "a path or an address"),
    "video": (_path, "a path or an address"),
    "captions": (_texts, "a list of texts that are not empty"),
    "domain": (_domain, f"one of {DOMAINS}"),
    "start": (_number, "seconds, from 0 to 1e9"),
    "end": (_number, "seconds, above start"),
    "caption": (_text, "a text that is not empty"),
    "category": (_category, "a name, or names with counts from 1 on, or null"),
    "SED": (_events, 'a list of {"start": seconds, "end": seconds, "event": name}'),
    "time_relation": (_text, "a text that is not empty"),
    "genre": (_text, "a text that is not empty"),
    "mood": (_text, "a text that is not empty"),
    "instruments": (_names, "a name or a list of names"),
    "tempo": (_tempo, "beats a minute, above 0"),
}


def clip_annotation(entry: ManifestEntry, start: float, seconds: float, whole: bool) -> dict[str, Any]:
    """The part of an entry's annotation that holds for one clip of its segment.

    start, seconds: where the clip lies in the segment. For a `whole` segment everything holds. For a piece, the events
    are those that sound in it, at their place in it, and the counts follow from them; without events the categories
    lose their counts, and in both cases the order is left out. The caption and the music fields stay.
    """
    annotation = dict(entry.annotation)
    if whole:
        return annotation
    annotation.pop("time_relation", None)
    if "SED" in annotation:
        events = [
            {"start": max(0.0, e["start"] - start), "end": min(seconds, e["end"] - start), "event": e["event"]}
            for e in annotation["SED"]
            if e["end"] > start and e["start"] < start + seconds
        ]
        names = [e["event"] for e in events]
        annotation["SED"] = events
        annotation["category"] = {name: names.count(name) for name in dict.fromkeys(names)}
    elif "category" in annotation:
        annotation["category"] = dict.fromkeys(annotation["category"])
    return annotation
