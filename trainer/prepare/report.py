"""The report of a preparation, what it kept and left out: one self-contained page, and JSON."""

from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import pairwise
from typing import Any

import torch

from ...models import strict
from ..core.tasks import TASKS
from ..data.storage import Store
from ..manifest.manifest import ManifestEntry
from ..manifest.manifest_index import ManifestIndex, read_block_entries
from ..media.clips import read_clips
from ..media.source import MediaError
from ..pages.charts import columns
from ..pages.render import render
from .counts import LENGTH_EDGES, Counts
from .filters import FiltersConfig
from .manifest_blocks import PreparePlan, json_bytes
from .merge import MergedBlocks

REPORT_FILE = "prepare_report.json"  # written last: a preparation with one is finished
PAGE_FILE = "prepare_report.html"
PLAYERS = 6
PICTURES = 4
Row = dict[str, Any]
EXAMPLE_NOTES = ("genre", "mood", "instruments", "tempo", "category")


def write_report(
    store: Store, index: ManifestIndex, plan: PreparePlan, merged: MergedBlocks, allow_private: bool
) -> None:
    """Raises OSError, and ValueError if the manifest has changed."""
    examples = _spread(merged.examples)
    entries = _entries_of(index, examples, allow_private)
    report: dict[str, Any] = {
        "plan": strict.to_dict(plan),
        "counts": merged.counts.to_json(),
        "first rejection": None if merged.first_rejection is None else asdict(merged.first_rejection),
        "examples": examples,
    }
    store.write(PAGE_FILE, _page(plan, entries, merged.counts, examples).encode())
    store.write(REPORT_FILE, json_bytes(report))


def _spread(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few of them from all over the manifest: equally many of each domain, with and without video."""
    groups: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for example in examples:
        groups.setdefault((example["domain"], example["video"]), []).append(example)
    chosen = []
    for _, found in sorted(groups.items()):
        count = min(len(found), PLAYERS // len(groups))
        chosen += [found[i * len(found) // count] for i in range(count)]
    return chosen


def _entries_of(index: ManifestIndex, examples: list[dict[str, Any]], allow_private: bool) -> dict[int, ManifestEntry]:
    """The lines of examples, each by its number."""
    found: dict[int, ManifestEntry] = {}
    for block, line in {(example["block"], example["line"]) for example in examples}:
        entries = read_block_entries(index.path, index.task(block), allow_private)
        found |= {entry.line: entry for entry in entries if entry.line == line}
    return found


def _page(plan: PreparePlan, entries: dict[int, ManifestEntry], counts: Counts, examples: list[dict[str, Any]]) -> str:
    clips = sum(counts["clips"].values())
    return render(
        "preparation.html",
        title=f"Prepared: {clips:,.0f} clips",
        facts=_facts(plan),
        lines=plan.lines,
        counts=counts,
        tasks={task: counts["tasks"].get(task, 0) for task in TASKS},
        lengths=columns(_lengths(counts), "files"),
        rate=plan.codec.sample_rate,
        examples=list(_players(plan, entries, examples)),
    )


def _facts(plan: PreparePlan) -> list[str]:
    codec, video, pictures = plan.codec, plan.video, "no video"
    if video:
        rates = f"{video.image_rate:g} and {video.motion_rate:g} pictures per second"
        pictures = f"video {video.kind}, {rates}, {video.size} pixels"
    return [
        f"Codec {codec.kind}, {codec.sample_rate:,} Hz, {codec.audio_channels} channel(s), clips of "
        f"{codec.seconds:.2f} s; {pictures}.",
        f"Manifest of {plan.lines:,} lines (xxh3 {plan.manifest}), seed {plan.seed}.",
        f"Filters: {_filters(plan.filters)}.",
    ]


def _filters(filters: FiltersConfig) -> str:
    """Those that differ from the default, which lets everything through."""
    said = [f"{f.name} {getattr(filters, f.name):g}" for f in fields(filters) if getattr(filters, f.name) != f.default]
    return "; ".join(said) or "none beyond readable and audible"


def _lengths(counts: Counts) -> list[tuple[str, float]]:
    """Files by length, from the shortest to the longest that occurs."""
    names = [
        f"< {_span(0, LENGTH_EDGES[0])}",
        *(_span(a, b) for a, b in pairwise(LENGTH_EDGES)),
        f"≥ {LENGTH_EDGES[-1] // 3600} h",
    ]
    amounts = [counts["lengths"].get(str(k), 0) for k in range(len(names))]
    occurring = [k for k, amount in enumerate(amounts) if amount] or [len(names)]
    return list(zip(names, amounts, strict=True))[occurring[0] : occurring[-1] + 1]


def _span(start: int, end: int) -> str:
    """A range of seconds."""
    unit, size = ("s", 1) if end <= 60 else ("min", 60)
    return f"{start // size}–{end // size} {unit}" if start else f"{end // size} {unit}"


def _players(
    plan: PreparePlan, entries: dict[int, ManifestEntry], examples: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The examples with their sound and pictures, read from the files; a file that is gone is left out."""
    for example in examples:
        entry = entries[example["line"]]
        start = entry.start + example["start"]
        try:
            clip = next(
                read_clips(
                    entry.audio, entry.video, plan.codec, plan.video, start, start + example["seconds"],
                    allow_private=entry.allow_private,
                )
            )  # fmt: skip
        except (MediaError, StopIteration):
            continue
        notes = [f"{key} {_value_text(example[key])}" for key in EXAMPLE_NOTES if example.get(key)]
        yield {
            "text": (example["captions"] or [example.get("caption", "without a caption")])[0],
            "wave": torch.from_numpy(clip.wave)[:, : round(clip.seconds * plan.codec.sample_rate)],
            "seconds": clip.seconds,
            "pictures": clip.images[:: max(1, len(clip.images) // PICTURES)][:PICTURES],
            "notes": [example["domain"], *notes, example["id"]],
        }


def _value_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(name if count is None else f"{count} x {name}" for name, count in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
