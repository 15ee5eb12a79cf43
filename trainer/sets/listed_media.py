"""The clips of a published list with their files on a user's disk."""

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...models import strict
from ..core.english import amount, complaint_list, join
from ..core.tasks import Domain
from ..manifest.scan import AUDIO, VIDEO
from ..media.header import header_seconds
from ..media.source import MediaError
from ..pages.tables import Cell, Table
from .published_lists import ListedClip, read_list

NAMED = 3  # names in a message


@dataclass(frozen=True)
class ListSource:
    """A published list, in one or more files, and the folder of its media. `captions` are used in place of the list's
    own texts; `leave_out` goes without clips whose media are not there."""

    lists: tuple[Path, ...]
    media: Path
    captions: Path | None = None
    split: str = "test"
    leave_out: bool = False


@dataclass(frozen=True)
class Media:
    """A clip's files, and the length of its sound in seconds."""

    audio: Path | None
    video: Path | None
    seconds: float

    @property
    def sound(self) -> Path:
        found = self.audio or self.video
        assert found
        return found


@dataclass(frozen=True)
class ListedMedia:
    """The clips whose media are there, these by the clip's id, and the other clips with the reason."""

    clips: list[ListedClip]
    media: dict[str, Media]
    missing: list[dict[str, str]]

    def notes(self) -> list[str]:
        lost, all_clips = len(self.missing), len(self.missing) + len(self.clips)
        return [f"{lost} of {amount(all_clips, 'clip')} of the list have no media."] if lost else []


def read_listed_media(name: str, source: ListSource) -> ListedMedia:
    """Read the list of a set and find its media.

    Raises ValueError where a list or captions are wrong, clips have no media and are not to be left out, or several
    files could be a clip's.
    """
    clips = read_list(name, source.lists, source.split)
    if source.captions:
        clips = _captioned(clips, source.captions)
    media, missing = _find_media(clips, source.media)
    if missing and not source.leave_out:
        title = f"{source.media}: {len(missing)} of {amount(len(clips), 'clip')} have no file; --leave-out goes without"
        raise ValueError(complaint_list([f"{row['id']}: {row['reason']}" for row in missing], title))
    if not media:
        raise ValueError(f"{source.media}: no clip of {name} is there; give the folder that holds its media")
    return ListedMedia([clip for clip in clips if clip.id in media], media, missing)


def _find_media(clips: Sequence[ListedClip], folder: Path) -> tuple[dict[str, Media], list[dict[str, str]]]:
    """The files of clips by id, anywhere in a folder, and the clips without a usable one with the reason.

    Raises ValueError where the folder is none, or two files of one kind could be a clip's.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the one that holds the media")
    index: dict[str, list[Path]] = defaultdict(list)
    for top, _, names in os.walk(folder):
        for name in names:
            path = Path(top, name)
            if path.suffix[1:].lower() in AUDIO | VIDEO:
                index[path.stem].append(path)
    found = [_files_of(clip, index, folder) for clip in clips]
    with ThreadPoolExecutor() as pool:
        read = list(tqdm(pool.map(_measure, found), total=len(found), unit=" clips", disable=None))
    media, missing = {}, []
    for clip, each in zip(clips, read, strict=True):
        if isinstance(each, Media):
            media[clip.id] = each
        else:
            missing.append({"id": clip.id, "reason": each or _not_found(clip)})
    return media, missing


def _files_of(clip: ListedClip, index: Mapping[str, list[Path]], folder: Path) -> tuple[Path | None, Path | None]:
    """A sound and a film with the first of a clip's names that there are files of."""
    for name in clip.names:
        paths = [p for p in index.get(name, ()) if clip.within.lower() in _from(folder, p).lower()]
        if not paths:
            continue
        kinds = []
        for endings in (AUDIO, VIDEO):
            same = sorted(path for path in paths if path.suffix[1:].lower() in endings)
            if len(same) > 1:
                raise ValueError(
                    f"{clip.id}: {join([str(path) for path in same])} could be its file; remove all but one"
                )
            kinds.append(same[0].absolute() if same else None)
        return kinds[0], kinds[1]
    return None, None


def _from(folder: Path, path: Path) -> str:
    """A path that begins with the name of the folder."""
    return str(Path(folder.absolute().name, path.relative_to(folder)))


def _not_found(clip: ListedClip) -> str:
    where = f" in a folder with {clip.within!r} in its name" if clip.within else ""
    return f"none is called {join(clip.names[:NAMED])}, or the like{where}"


def _measure(files: tuple[Path | None, Path | None]) -> Media | str:
    """The media, or why they cannot be used; "" where there are none."""
    audio, video = files
    if not (path := audio or video):
        return ""
    try:
        return Media(audio, video, header_seconds(path))
    except MediaError as error:
        return str(error)


def _captioned(clips: Sequence[ListedClip], path: Path) -> list[ListedClip]:
    """Clips with the captions of a file in place of their own texts. Raises ValueError for a line that is none."""
    by_id: dict[str, tuple[str, ...]] = {}
    known = {clip.id for clip in clips}
    try:
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            if line.strip():
                row = strict.parse_json(line.decode("utf-8-sig"))
                name, text = row["id"], row["caption"]
                if name not in known or not isinstance(text, str) or not text.strip():
                    raise ValueError(f"line {number}: {str(row)[:80]} names no clip of the list, or no text")
                by_id[name] = (*by_id.get(name, ()), text)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error.strerror).lower() if isinstance(error, OSError) else str(error)
        raise ValueError(f'{path}: no captions as {{"id": "…", "caption": "a dog barks"}} per line: {reason}') from None
    return [replace(clip, texts=by_id[clip.id], labels=False) if clip.id in by_id else clip for clip in clips]


def manifest_lines(domain: Domain, listed: ListedMedia) -> list[dict[str, Any]]:
    """A line for each file, with the texts of all its clips; labels name their source."""
    lines: dict[Path, dict[str, Any]] = {}
    for clip in listed.clips:
        files = listed.media[clip.id]
        line = lines.get(files.sound)
        if line is None:
            places = {kind: str(path) for kind, path in (("audio", files.audio), ("video", files.video)) if path}
            line = lines[files.sound] = {**places, "domain": domain, **clip.annotation}
        known = line.setdefault("captions", [])
        for text in clip.texts:
            written = {"text": text, "source": "labels", "kind": "caption"} if clip.labels else text
            if written not in known:
                known.append(written)
    for line in lines.values():
        if not line["captions"]:
            del line["captions"]
    return list(lines.values())


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def summary_table(summary: Mapping[str, Any], first: str) -> Table:
    """A summary for the terminal: clips and hours next to the paper's, by the key `first` of its rows."""
    columns = (first, "clips", "paper_clips", "hours", "paper_hours", "difference")
    rows = [[Cell("–" if row[name] is None else str(row[name])) for name in columns] for row in summary["rows"]]
    headings = (first, "clips", "in Table A.1", "hours", "in Table A.1", "")
    return Table(summary["set"], " ".join(summary["notes"]), headings, rows)


def difference(found: int, printed: int) -> str:
    """How a number of clips differs from the paper's."""
    if found == printed:
        return "as many"
    return f"{abs(found - printed)} {'more' if found > printed else 'fewer'} than in the paper"
