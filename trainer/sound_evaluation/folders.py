"""Anybody's sounds: a folder, and the prompts that its sounds follow.

The prompts are a file of launch/generate.py --prompts; the key `reference` of a line names the true sound. The id of a
line is its `out` without the ending, or its number as in 0001, and a sound belongs to the line whose id is its name. A
`manifest.jsonl` in the folder may name it otherwise: {"file": "take 3.wav", "id": "0001"}.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models import strict
from ..core.english import amount, complaint_list, join
from ..generation.prompts import read_prompts
from ..scorers.pictures import VideoClip

MANIFEST = "manifest.jsonl"
SOUNDS = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".mp4", ".mov", ".mkv", ".webm"}
NAMED = 5  # ids in a message


@dataclass(frozen=True)
class EvaluatedPrompt:
    """A line: its id, its text ("" where it has none of its own), the true sound and the video, where it names them."""

    id: str
    text: str
    reference: Path | None
    line: int
    video: VideoClip | None = None


@dataclass(frozen=True)
class SoundFolder:
    """The sounds of one system by the ids of their prompts. `missing` ids have none."""

    name: str
    sounds: dict[str, Path]
    missing: list[str]


def read_evaluated_prompts(path: Path) -> list[EvaluatedPrompt]:
    """Raises ValueError as `read_prompts`, and where two lines have the same id, or some name a reference and others
    none."""
    prompts = [
        EvaluatedPrompt(
            Path(prompt.out).with_suffix("").as_posix() if prompt.out else f"{line:04d}",
            prompt.text or "",
            Path(prompt.reference) if prompt.reference else None,
            line,
            VideoClip(Path(prompt.video), prompt.start, prompt.seconds) if prompt.video else None,
        )
        for line, prompt in read_prompts(path, {}, check_files=False)
    ]
    lines: dict[str, int] = {}
    for prompt in prompts:
        if (first := lines.setdefault(prompt.id, prompt.line)) != prompt.line:
            raise ValueError(
                f"{path}: lines {first} and {prompt.line} have the same id, {prompt.id!r}; change an `out`"
            )
    without = [prompt.line for prompt in prompts if prompt.reference is None]
    if without and len(without) < len(prompts):
        raise ValueError(
            f"{path}: line {without[0]} and {len(without) - 1} more name no `reference`, and others do; give it to all "
            f"or to none"
        )
    return prompts


def find_sounds(folder: Path, prompts: Sequence[EvaluatedPrompt]) -> SoundFolder:
    """Raises ValueError where the folder is none, a sound belongs to no prompt, two belong to the same, or one was made
    from another text."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the folder of a system's sounds")
    entries = _read_manifest(folder / MANIFEST)
    by_id: dict[str, Path] = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SOUNDS and p.is_file()):
        name = path.relative_to(folder)
        key = str(entries.get(name.as_posix(), {}).get("id", name.with_suffix("").as_posix()))
        if key in by_id:
            raise ValueError(f"{folder}: {by_id[key].name} and {path.name} are both sounds of {key!r}; remove one")
        by_id[key] = path
    known = {prompt.id: prompt for prompt in prompts}
    if strange := [key for key in by_id if key not in known]:
        raise ValueError(
            f"{folder}: {len(strange)} of {amount(len(by_id), 'sound')} belong to no prompt: {join(strange[:NAMED])}; "
            f"the ids of prompts are like {join([prompt.id for prompt in prompts[:2]])}. Rename sounds, or name their "
            f"ids in {folder / MANIFEST}"
        )
    wrong = [
        f"{path.name} was made from {text!r}, and its prompt says {known[key].text!r}"
        for key, path in by_id.items()
        if (text := entries.get(path.relative_to(folder).as_posix(), {}).get("text")) and known[key].text
        if text != known[key].text
    ]
    if wrong:
        raise ValueError(complaint_list(wrong, f"{folder}: sounds of other prompts"))
    missing = [prompt.id for prompt in prompts if prompt.id not in by_id]
    return SoundFolder(folder.resolve().name, by_id, missing)


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """Lines by file; the last of several counts. Raises ValueError for a line that is none, but the last, which a
    killed process may have left."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    entries = {}
    for number, text in enumerate(lines, start=1):
        try:
            entry = strict.parse_json(text.decode()) if text.strip() else None
            if entry is not None:
                entries[Path(entry["file"]).as_posix()] = entry
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise ValueError(
                    f'{path}:{number}: {text[:80]!r} is no line like {{"file": "a.wav", "id": "0001"}}'
                ) from None
    return entries
