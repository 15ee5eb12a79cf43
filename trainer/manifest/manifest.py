"""Read a manifest: one JSON object per line, for each file (or segment of a file) that a user brings.

    {"audio": "wav/0001.wav", "captions": ["a dog barks twice"], "category": {"dog": 2}}
    {"video": "clips/7.mp4", "start": 30, "end": 50, "domain": "music", "genre": "jazz", "instruments": ["piano"]}

`ManifestLine` has the keys. Any other key is kept under `annotation["extra"]`, unless it looks like a misspelt one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from ...models import strict
from ..core.addresses import ADDRESS, LOCAL_PROTOCOLS, address_problem
from ..core.credentials import redacted
from ..core.english import complaint_list, lines_wrong
from ..core.tasks import Domain
from .line_values import LARGEST, PLACED_KINDS, Count, Location, Origin, Seconds, SourcedCaption, Text, TimedEvent

MUSIC_FIELDS = ("genre", "mood", "instruments", "tempo")
AUDIO_FIELDS = ("category", "SED", "time_relation")
ANNOTATION_FIELDS = ("caption", *AUDIO_FIELDS, *MUSIC_FIELDS)


@with_config(ConfigDict(extra="allow", strict=True))
class ManifestLine(TypedDict, total=False):
    """A file or a segment of one, and what is known of it. Besides this, the reader refuses an end before its start, a
    misspelt key and an address that may not or cannot be opened."""

    audio: Location
    video: Location  # one picture or a video of the same moment; without `audio` it gives the sound too
    captions: Annotated[
        list[Text | SourcedCaption],
        Field(description='a list of texts that are not empty, or of {"text", "source", "kind"}'),
    ]  # of the whole segment
    domain: Annotated[Domain, Field(description="one of ('audio', 'music')")]
    start: Annotated[Seconds, Field(description="seconds, from 0 to 1e9")]  # of the segment in the file
    end: Annotated[Seconds, Field(description="seconds, above start")]  # default: where the file ends
    caption: Text
    category: Annotated[
        Annotated[Text, AfterValidator(lambda name: {name: None})]
        | Annotated[dict[Text, Count | None], Field(json_schema_extra={"additionalProperties": False})],
        Field(description="a name, or names with counts from 1 on, or null"),
    ]
    SED: Annotated[
        list[TimedEvent],
        Field(description='a list of {"start": seconds, "end": seconds, "event": name} or {"00:02-00:06": name}'),
    ]  # in seconds from the segment's start
    time_relation: Text  # names in order of time ("bell, kick, kick"), or a word such as "interleave"
    genre: Text
    mood: Text
    instruments: Annotated[
        Annotated[Text, AfterValidator(lambda name: [name])] | list[Text],
        Field(description="a name or a list of names"),
    ]
    tempo: Annotated[float, Field(gt=0, le=LARGEST, description="beats per minute, above 0")]


LINE = TypeAdapter(ManifestLine)


@cache
def line_schema() -> dict[str, Any]:
    """The JSON Schema of a line, with what concerns several keys."""
    needs_music = {"properties": {"domain": {"const": "music"}}, "required": ["domain"]}
    return LINE.json_schema() | {
        "anyOf": [{"required": ["audio"]}, {"required": ["video"]}],
        "dependentSchemas": dict.fromkeys(MUSIC_FIELDS, needs_music),
    }


@dataclass(frozen=True)
class ManifestEntry:
    """One line of a manifest. `annotation` has the existing fields, with `extra`."""

    line: int
    name: str  # the sound's path or address as written, without credentials
    audio: str  # absolute path, or address
    video: str | None
    domain: str
    start: float  # seconds
    end: float | None  # seconds; None: to the end of the file
    allow_private: bool = False  # its http addresses may lead to this machine or its network
    captions: list[str] = field(default_factory=list)
    annotation: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)  # of captions that say theirs


def read_entries(path: Path, allow_private: bool = False) -> list[ManifestEntry]:
    """Read and check every line. Files may be missing, but the package for an address (such as s3://) must be
    installed. Empty lines are skipped. `allow_private` is set for each entry.

    Raises:
        ValueError: the manifest is missing or empty, or lines are wrong; names the first of them.
    """
    return [replace(entry, allow_private=allow_private) for entry in iter_entries(path)]


def iter_entries(path: Path) -> Iterator[ManifestEntry]:
    """The entries of `read_entries` one by one; raises at the end."""
    count, wrong = 0, list[str]()
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    count += 1
                    try:
                        yield read_entry(path, number, text.rstrip(b"\r\n"))
                    except ValueError as error:
                        wrong.append(str(error))
    except OSError as error:
        raise ValueError(f"manifest {path}: {error.strerror}") from error
    if wrong:
        title = f"manifest {path}: {lines_wrong(len(wrong), count)}"
        raise ValueError(wrong[0] if len(wrong) == 1 else complaint_list(wrong, title))
    if not count:
        raise ValueError(f"manifest {path} holds no line; expected one JSON object per line")


def raw_lines(path: Path, entries: Sequence[ManifestEntry], folder: Path) -> list[dict[str, Any]]:
    """The lines of the manifest at `path` as written, one per entry, with paths that are also valid in `folder`."""
    texts = [text for text in path.read_bytes().split(b"\n") if text.strip()]
    return [raw_line(path, entry, text, folder) for entry, text in zip(entries, texts, strict=True)]


def raw_line(path: Path, entry: ManifestEntry, text: bytes, folder: Path) -> dict[str, Any]:
    """One line of the manifest at `path` as written, with paths that are also valid in `folder`."""
    line: dict[str, Any] = strict.parse_json(text.decode("utf-8-sig"))
    if path.parent.resolve() != folder.resolve():
        places = {"audio": entry.audio, "video": entry.video}
        line.update({kind: place for kind, place in places.items() if kind in line})
    return line


def read_entry(path: Path, line: int, text: bytes) -> ManifestEntry:
    """Read one line of the manifest at `path`; raises ValueError as `read_entries`."""
    where = f"{path}:{line}"
    try:
        raw = strict.parse_json(text.decode("utf-8-sig"), parse_constant=_no_constant, parse_float=_finite)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}): {text[:80]!r}; expected one object per line") from error
    if not isinstance(raw, dict):
        raise ValueError(
            f"{where}: {text[:80]!r} is a {type(raw).__name__}; expected an object such as "
            '{"audio": "a.wav", "captions": ["a dog barks"]}'
        )
    return parse_entry(where, path.parent, line, raw)


def parse_entry(where: str, folder: Path, line: int, raw: dict[str, Any]) -> ManifestEntry:
    """Turn a JSON object into an entry, with paths relative to `folder`; raises ValueError that begins with `where`."""
    keys = {key.lower(): key for key in ManifestLine.__annotations__}
    extra = {key: value for key, value in raw.items() if key not in keys.values()}
    for key in extra:
        if close := get_close_matches(key.lower(), keys, n=1, cutoff=0.85):
            raise ValueError(f"{where}: key {key!r}; did you mean {keys[close[0]]!r}?")
    try:
        values: dict[str, Any] = dict(LINE.validate_python({key: raw[key] for key in raw.keys() - extra.keys()}))
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        expected = line_schema()["properties"][key]["description"]
        raise ValueError(f"{where}: {key} is {strict.shown(repr(raw[key]))}; expected {expected}") from None
    if "audio" not in values and "video" not in values:
        raise ValueError(f"{where}: neither 'audio' nor 'video'; one of them must name the file with the sound")
    domain = values.get("domain", "audio")
    for key in MUSIC_FIELDS:
        if key in values and domain != "music":
            raise ValueError(f'{where}: {key!r} belongs to music; add "domain": "music" or leave it out')
    start, end = values.get("start", 0.0), values.get("end")
    if end is not None and end <= start:
        raise ValueError(f"{where}: end {end} must be above start {start}")
    annotation = {key: values[key] for key in ANNOTATION_FIELDS if key in values}
    if extra:
        annotation["extra"] = extra
    sourced = [caption for caption in values.get("captions", []) if isinstance(caption, dict)]
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
        captions=[text if isinstance(text, str) else text["text"] for text in values.get("captions", [])],
        annotation=annotation,
        origins={text["text"]: Origin(**{k: v for k, v in text.items() if k != "text"}) for text in sourced},
    )


def _place(where: str, folder: Path, key: str, written: str) -> str:
    """An absolute path, or an address that may and can be opened here."""
    found = ADDRESS.match(written)
    if found is None:
        return str(folder.absolute() / written)
    if found[1] in LOCAL_PROTOCOLS and "::" not in written:
        return _local_path(written)
    if problem := address_problem(written) or _missing_package(found[1]):
        raise ValueError(f"{where}: {key} is {redacted(written)!r}: {problem}")
    return written


@cache
def _missing_package(protocol: str) -> str:
    """The package without which addresses of a protocol cannot be opened here; empty if nothing is missing."""
    import fsspec  # takes a tenth of a second, and most manifests have only paths

    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        return f"{protocol}:// needs another package: {error}"
    return ""


def _local_path(address: str) -> str:
    from fsspec.implementations.local import LocalFileSystem

    return str(LocalFileSystem._strip_protocol(address))


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is larger than any float")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def clip_annotation(entry: ManifestEntry, start: float, seconds: float, whole: bool) -> dict[str, Any]:
    """The part of an entry's annotation that is true of one clip of its segment.

    start, seconds: the place of the clip in the segment. For a `whole` segment everything stays. Otherwise events are
    cut to the clip and counts follow from them; without events, categories lose their counts. The order is dropped. The
    caption and the music fields stay.
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


def clip_captions(entry: ManifestEntry, whole: bool) -> list[str]:
    """The captions that are true of one clip of an entry's segment: of a `whole` one all, otherwise none that counts
    sounds or says when or in which order they are heard."""
    return [text for text in entry.captions if whole or entry.origins.get(text, Origin()).kind not in PLACED_KINDS]


def written_caption(text: str, entry: ManifestEntry) -> str | dict[str, str]:
    """A caption of an entry as a manifest has it."""
    return {"text": text, **entry.origins[text]._asdict()} if text in entry.origins else text
