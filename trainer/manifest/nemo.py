"""Convert manifests of NeMo Curator into ours and back.

    {"audio_filepath": "/a.wav", "text": "a dog barks", "duration": 9.8}                    the whole file
    {"audio_filepath": "/a.wav", "text": "a dog barks", "offset": 10.0, "duration": 10.0}   a segment of it

`text` is the first caption, or else the line's `caption`. The other keys of either form stay as they are, so nothing is
lost on the way there and back: Curator's stages keep keys that they do not know.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...models import strict
from ..core.addresses import ADDRESS
from ..core.english import amount
from ..core.files import atomic_output
from .manifest import parse_entry, read_entry

FILE, TEXT, OFFSET, DURATION = "audio_filepath", "text", "offset", "duration"


def convert_nemo(manifest: Path, out: Path) -> str:
    """Write `out` in the form that `manifest` does not have, and say what was done.

    Raises ValueError if `out` exists or a line is wrong or of another form than the first.
    """
    theirs = None
    with atomic_output(out) as partial, partial.open("w", encoding="utf-8") as file:
        count = 0
        for number, text in _lines(manifest):
            where = f"{manifest}:{number}"
            try:
                line = strict.parse_json(text.decode("utf-8-sig"))
            except ValueError as error:
                raise ValueError(f"{where}: not JSON ({error}): {text[:80]!r}") from error
            is_theirs = isinstance(line, dict) and FILE in line
            theirs = is_theirs if theirs is None else theirs
            if is_theirs != theirs:
                raise ValueError(f"{where}: {'has' if is_theirs else 'lacks'} {FILE!r}, unlike the first line")
            converted = _from_nemo(where, manifest, line) if is_theirs else _to_nemo(manifest, number, text, line)
            try:
                file.write(json.dumps(converted, ensure_ascii=False, allow_nan=False) + "\n")
            except ValueError as error:
                raise ValueError(f"{where}: a number is not finite ({error})") from None
            count += 1
        if theirs is None:
            raise ValueError(f"manifest {manifest} holds no line; expected one JSON object per line")
    return f"{amount(count, 'line')} {'from' if theirs else 'to'} NeMo Curator's form"


def _lines(manifest: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with manifest.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    yield number, text.rstrip(b"\r\n")
    except OSError as error:
        raise ValueError(f"manifest {manifest}: {error.strerror}") from error


def _from_nemo(where: str, manifest: Path, line: dict[str, Any]) -> dict[str, Any]:
    """A line of ours. Raises ValueError that begins with `where`."""
    rest = {key: value for key, value in line.items() if key not in (FILE, TEXT, OFFSET)}
    place = line[FILE]
    if not isinstance(place, str) or not place.strip():
        raise ValueError(f"{where}: {FILE} is {strict.shown(repr(place))}; expected a path or an address")
    new: dict[str, Any] = {"audio": place if ADDRESS.match(place) else str(manifest.parent.absolute() / place)}
    text = line.get(TEXT) or ""
    if not isinstance(text, str):
        raise ValueError(f"{where}: {TEXT} is {strict.shown(repr(text))}; expected a text")
    captions = rest.pop("captions", [])
    if text.strip() and isinstance(captions, list) and text not in (line.get("caption"), *map(_text, captions)):
        captions = [text, *captions]
    new |= {"captions": captions} if captions else {}
    if line.get(OFFSET) is not None:
        start = _seconds(where, OFFSET, line[OFFSET])
        new |= {"start": start}
        if rest.get(DURATION) is not None:
            new |= {"end": round(start + _seconds(where, DURATION, rest.pop(DURATION)), 6)}
    new = new | rest | new  # what else the line has under these names does not count
    parse_entry(where, manifest.parent, 0, new)
    return new


def _to_nemo(manifest: Path, number: int, text: bytes, line: dict[str, Any]) -> dict[str, Any]:
    """A line of theirs. Raises ValueError as `read_entry`."""
    entry = read_entry(manifest, number, text)
    rest = {key: value for key, value in line.items() if key not in ("audio", "start", "end")}
    caption = next(iter(entry.captions), None) or entry.annotation.get("caption") or rest.get(TEXT, "")
    new: dict[str, Any] = {FILE: entry.audio, TEXT: caption}
    if "start" in line or "end" in line:
        new[OFFSET] = entry.start
        rest.pop(DURATION, None)  # of the whole file
    if entry.end is not None:
        new[DURATION] = round(entry.end - entry.start, 6)
    if entry.video:
        new["video"] = entry.video
    return new | rest | new


def _text(caption: Any) -> Any:
    return caption.get("text") if isinstance(caption, dict) else caption


def _seconds(where: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{where}: {key} is {strict.shown(repr(value))}; expected seconds")
    return float(value)
