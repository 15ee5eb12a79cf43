"""A first manifest from a folder: its sounds and videos, and what lies beside each of them under the same name.

    dog.wav, dog.mp4, dog.txt, dog.json  ->  {"audio": "dog.wav", "video": "dog.mp4", "captions": [...], ...}

Every line of `dog.txt` is a caption. `dog.json` holds an object with keys of a manifest, or a list of such objects, one
a segment with its start and end.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..core import files
from .manifest import ANNOTATION_FIELDS, parse_entry

AUDIO = frozenset(
    "aac ac3 aif aiff amr ape au caf dts eac3 flac m4a m4b mka mp2 mp3 oga ogg opus ra tak tta w64 wav wma wv".split()
)
VIDEO = frozenset("3gp asf avi f4v flv m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv rm rmvb ts vob webm wmv".split())
PICTURE = frozenset("bmp gif jpeg jpg png tif tiff webp".split())
_SHOWN = 20  # problems of each kind that the report names


@dataclass
class ScanReport:
    """What was found, in numbers, and what was left out and why."""

    written: Counter[str] = field(default_factory=Counter)  # lines by the media they name
    known: Counter[str] = field(default_factory=Counter)  # lines by what is known of them
    left_out: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)  # files that no line speaks of

    def __str__(self) -> str:
        lines = [f"{self.written.total()} lines: {_counts(self.written)}", f"  of these {_counts(self.known)}"]
        for problems, what in ((self.left_out, "left out"), (self.unused, "not used")):
            if problems:
                lines += [f"{what}: {len(problems)}", *(f"  {problem}" for problem in problems[:_SHOWN])]
                lines += [f"  and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        return "\n".join(lines)


@dataclass
class _NameGroup:
    """Files of one folder that share a name."""

    audio: list[Path] = field(default_factory=list)
    video: list[Path] = field(default_factory=list)
    picture: list[Path] = field(default_factory=list)
    txt: list[Path] = field(default_factory=list)
    json: list[Path] = field(default_factory=list)

    @property
    def media(self) -> dict[str, Path]:
        return {kind: files[0] for kind, files in (("audio", self.audio), ("video", self.video)) if files}

    @property
    def doubled(self) -> list[Path]:
        """Files that claim the same place."""
        return next((files for files in (self.audio, self.video, self.txt, self.json) if len(files) > 1), [])


def scan(folder: Path, out: Path, domain: str, pictures: bool) -> ScanReport:
    """Writes the manifest `out` of a folder and the folders in it. `domain` is that of files whose side-car says none;
    with `pictures` a picture beside a sound is its video. Paths are relative to the manifest where the files lie below
    its folder. Hidden files are left alone, contents of media are not looked at.

    Raises:
        ValueError: `out` exists, `folder` is none, or holds no media.
        OSError: a folder cannot be read, or `out` not be written.
    """
    if out.exists():
        raise ValueError(f"{out} exists, and nothing is written over it; take another name")
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    report = ScanReport()
    lines: list[str] = []
    groups = _groups(folder, report)
    for group in tqdm(groups, unit=" names", disable=None):
        lines += _lines(group, folder, out, domain, pictures, report)
    if not lines:
        raise ValueError(f"{folder}: not one line could be written.\n{report}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        out.touch(exist_ok=False)
    except FileExistsError as error:
        raise ValueError(f"{out} has appeared meanwhile, and nothing is written over it") from error
    files.write_text(out, "".join(line + "\n" for line in lines))
    return report


def _groups(folder: Path, report: ScanReport) -> list[_NameGroup]:
    """In the order of their names; a folder that cannot be read raises."""
    groups: dict[Path, _NameGroup] = defaultdict(_NameGroup)

    def fail(error: OSError) -> None:
        raise error

    for top, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(top, name)
            ending = path.suffix[1:].lower()
            kinds = {"audio": AUDIO, "video": VIDEO, "picture": PICTURE, "txt": {"txt"}, "json": {"json"}}
            kind = next((kind for kind, endings in kinds.items() if ending in endings), None)
            if kind is None:
                report.unused.append(f"{_display_path(path, folder)}: neither sound nor video")
            else:
                getattr(groups[path.with_suffix("")], kind).append(path)
    return [groups[name] for name in sorted(groups)]


def _lines(
    group: _NameGroup, folder: Path, out: Path, domain: str, pictures: bool, report: ScanReport
) -> Iterator[str]:
    if pictures and group.audio and not group.video:
        group.video, group.picture = group.picture, []
    report.unused += [f"{_display_path(path, folder)}: a picture" for path in group.picture]
    if not group.media:
        beside = [*group.txt, *group.json]
        report.unused += [f"{_display_path(path, folder)}: no sound or video of that name beside it" for path in beside]
        return
    if group.doubled:
        names = ", ".join(_display_path(path, folder) for path in group.doubled)
        report.left_out.append(f"{names}: one name, and which is meant cannot be told")
        return
    try:
        for line in _group_lines(group, folder, out, domain):
            report.written[" with ".join(group.media)] += 1
            report.known[_known_fields(line)] += 1
            yield json.dumps(line, ensure_ascii=False)
    except (ValueError, OSError) as error:
        report.left_out.append(str(error))


def _group_lines(group: _NameGroup, folder: Path, out: Path, domain: str) -> list[dict[str, Any]]:
    """The lines of a group; raises ValueError that names the side-car, and no line is good then."""
    captions: list[str] = []
    for path in group.txt:
        captions = [line.strip() for line in _text(path, folder).splitlines() if line.strip()]
    notes: list[Any] = [{}]
    for path in group.json:
        try:
            loaded = json.loads(_text(path, folder))
        except ValueError as error:
            raise ValueError(f"{_display_path(path, folder)}: not JSON ({error})") from error
        notes = loaded if isinstance(loaded, list) else [loaded]
    where = _display_path((group.json or list(group.media.values()))[0], folder)
    lines = []
    for note in notes:
        if not isinstance(note, dict) or {"audio", "video"} & note.keys():
            raise ValueError(f"{where}: expected an object, or objects, with keys of a manifest but audio and video")
        media = {kind: _manifest_path(path, out) for kind, path in group.media.items()}
        line: dict[str, Any] = {**media, "domain": domain, **note}
        if captions:
            line["captions"] = [*captions, *note.get("captions", [])]
        parse_entry(where, out.parent, 0, line)
        lines.append(line)
    return lines


def _known_fields(line: dict[str, Any]) -> str:
    annotation = line.keys() & set(ANNOTATION_FIELDS)
    captions = bool(line.get("captions"))
    if captions and annotation:
        return "with captions and annotation"
    return "with captions" if captions else "with annotation" if annotation else "with neither captions nor annotation"


def _manifest_path(path: Path, out: Path) -> str:
    """As the manifest names it."""
    top, full = out.parent.resolve(), path.parent.resolve() / path.name
    return str(full.relative_to(top) if full.is_relative_to(top) else full)


def _display_path(path: Path, folder: Path) -> str:
    """For messages; a name that is no text is shown with its odd bytes."""
    return os.fsencode(path.relative_to(folder)).decode(errors="backslashreplace")


def _text(path: Path, folder: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{_display_path(path, folder)}: not UTF-8 ({error.reason} at byte {error.start})") from error


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
