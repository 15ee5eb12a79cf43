"""Write a first manifest of a folder: sounds and videos, with side-car files of the same name.

    dog.wav, dog.mp4, dog.txt, dog.json  ->  {"audio": "dog.wav", "video": "dog.mp4", "captions": [...], ...}

Every line of `dog.txt` is a caption. `dog.json` holds an object with keys of a manifest, or a list of such objects, one
per segment with its start and end.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...models import strict
from ..core import files
from .manifest import ANNOTATION_FIELDS, parse_entry

AUDIO = frozenset(
    "aac ac3 aif aiff amr ape au caf dts eac3 flac m4a m4b mka mp2 mp3 oga ogg opus ra tak tta w64 wav wma wv".split()
)
VIDEO = frozenset("3gp asf avi f4v flv m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv rm rmvb ts vob webm wmv".split())
PICTURE = frozenset("bmp gif jpeg jpg png tif tiff webp".split())
_SHOWN = 20  # problems per kind in the report


@dataclass
class ScanReport:
    """The numbers of written lines, and those left out by reason."""

    written: Counter[str] = field(default_factory=Counter)  # lines by their media
    described: Counter[str] = field(default_factory=Counter)  # lines by their captions and annotation
    left_out: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)  # files that no line uses

    def __str__(self) -> str:
        lines = [f"{self.written.total()} lines: {_counts(self.written)}", f"  of these {_counts(self.described)}"]
        for problems, what in ((self.left_out, "left out"), (self.unused, "not used")):
            if problems:
                lines += [f"{what}: {len(problems)}", *(f"  {problem}" for problem in problems[:_SHOWN])]
                lines += [f"  and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        return "\n".join(lines)


@dataclass
class _NameGroup:
    """Files of one folder with the same name."""

    audio: list[Path] = field(default_factory=list)
    video: list[Path] = field(default_factory=list)
    picture: list[Path] = field(default_factory=list)
    txt: list[Path] = field(default_factory=list)
    json: list[Path] = field(default_factory=list)

    @property
    def media(self) -> dict[str, Path]:
        return {kind: files[0] for kind, files in (("audio", self.audio), ("video", self.video)) if files}

    @property
    def conflicting(self) -> list[Path]:
        """Several files of one kind."""
        return next((files for files in (self.audio, self.video, self.txt, self.json) if len(files) > 1), [])


def scan(folder: Path, out: Path, domain: str, pictures: bool) -> ScanReport:
    """Write the manifest `out` of a folder and its subfolders. `domain` is for files whose side-car has none; with
    `pictures`, a picture next to a sound is its video. Paths of files below the manifest are relative to it. Hidden
    files are ignored, and media are not opened.

    Raises:
        ValueError: `out` exists, `folder` is no folder or has no media.
        OSError: a folder cannot be read, or `out` cannot be written.
    """
    if out.exists():
        raise ValueError(f"{out} exists and is not overwritten; choose another name")
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    report = ScanReport()
    lines: list[str] = []
    groups = _groups(folder, report)
    for group in tqdm(groups, unit=" names", disable=None):
        lines += _lines(group, folder, out, domain, pictures, report)
    if not lines:
        raise ValueError(f"{folder}: no line could be written.\n{report}")
    with files.atomic_output(out) as partial:
        partial.write_text("".join(line + "\n" for line in lines))
    return report


def _groups(folder: Path, report: ScanReport) -> list[_NameGroup]:
    """The groups in order of their names. Raises OSError for a folder that cannot be read."""
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
        side_cars = [*group.txt, *group.json]
        report.unused += [f"{_display_path(path, folder)}: no sound or video has this name" for path in side_cars]
        return
    if group.conflicting:
        names = ", ".join(_display_path(path, folder) for path in group.conflicting)
        report.left_out.append(f"{names}: several files with one name; rename one")
        return
    try:
        for line in _group_lines(group, folder, out, domain):
            report.written[" with ".join(group.media)] += 1
            report.described[_known_fields(line)] += 1
            yield json.dumps(line, ensure_ascii=False)
    except (ValueError, OSError) as error:
        report.left_out.append(str(error))


def _group_lines(group: _NameGroup, folder: Path, out: Path, domain: str) -> list[dict[str, Any]]:
    """The lines of a group. Raises ValueError that names the side-car, also if only one line is wrong."""
    captions: list[str] = []
    for path in group.txt:
        captions = [line.strip() for line in _text(path, folder).splitlines() if line.strip()]
    notes: list[Any] = [{}]
    for path in group.json:
        try:
            loaded = strict.parse_json(_text(path, folder))
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
    """The path for the manifest."""
    top, full = out.parent.resolve(), path.parent.resolve() / path.name
    return str(full.relative_to(top) if full.is_relative_to(top) else full)


def _display_path(path: Path, folder: Path) -> str:
    """The path for messages; undecodable bytes are escaped."""
    return os.fsencode(path.relative_to(folder)).decode(errors="backslashreplace")


def _text(path: Path, folder: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{_display_path(path, folder)}: not UTF-8 ({error.reason} at byte {error.start})") from error


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
