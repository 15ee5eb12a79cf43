"""Split a manifest into lines to train on and lines held out for validation."""

import json
from pathlib import Path

import xxhash

from ..core.files import atomic_output
from .manifest import raw_lines, read_entries

TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"


def split_manifest(manifest: Path, out: Path, share: float) -> tuple[int, int]:
    """Writes `out/train.jsonl` and `out/held_out.jsonl`; returns their lines. A hash of the sound's path or address
    decides, so all segments of a file go together, and a manifest that grows keeps what it has held out.

    Raises ValueError where `out` exists, the manifest is wrong, or one of the two would be empty.
    """
    if not 0 < share < 1:
        raise ValueError(f"--share {share:g}: must be above 0 and below 1")
    entries = read_entries(manifest, allow_private=True)  # nothing is opened here
    lines = {True: list[str](), False: list[str]()}
    for entry, line in zip(entries, raw_lines(manifest, entries, out), strict=True):
        lines[is_held_out(entry.name, share)].append(json.dumps(line, ensure_ascii=False) + "\n")
    if not all(lines.values()):
        which = HELD_OUT if lines[False] else TRAIN
        raise ValueError(
            f"{manifest}: of {len(entries)} lines none would be in {which} at --share {share:g}; give another share"
        )
    with atomic_output(out) as partial:
        partial.mkdir()
        (partial / TRAIN).write_text("".join(lines[False]))
        (partial / HELD_OUT).write_text("".join(lines[True]))
    return len(lines[False]), len(lines[True])


def is_held_out(name: str, share: float) -> bool:
    """Whether a sound of this path or address belongs to the share that is held out. A larger share has all of a
    smaller one."""
    return bool(xxhash.xxh3_64_intdigest(name.encode()) < share * 2**64)
