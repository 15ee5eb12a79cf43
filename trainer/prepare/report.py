"""What a preparation kept and left out, as one self-contained page and as JSON."""

from dataclasses import asdict, fields
from html import escape
from itertools import pairwise
from typing import Any

import torch

from ...models import strict
from ..core.tasks import DOMAINS, TASKS
from ..data.storage import Store
from ..manifest.manifest import ManifestEntry
from ..media.clips import Clip, read_clips
from ..media.source import MediaError
from ..pages.charts import bars, cloud, columns
from ..pages.embedded_media import picture_uri, small_uri, spectrogram_uri
from ..pages.page import page
from .blocks import PreparePlan, json_bytes
from .counts import LENGTH_EDGES, Counts
from .filters import FiltersConfig
from .merge import MergedBlocks

REPORT_FILE = "prepare_report.json"  # written last: a preparation with one is finished
PAGE_FILE = "prepare_report.html"
PLAYERS = 6
PICTURES = 4
EXAMPLE_NOTES = ("genre", "mood", "instruments", "tempo", "category")


def write_report(store: Store, plan: PreparePlan, entries: list[ManifestEntry], merged: MergedBlocks) -> None:
    """Raises OSError."""
    examples = _spread(merged.examples)
    report: dict[str, Any] = {
        "plan": strict.to_dict(plan),
        "counts": merged.counts.to_json(),
        "first rejection": None if merged.first_rejection is None else asdict(merged.first_rejection),
        "examples": examples,
    }
    store.write(PAGE_FILE, _page(plan, entries, merged.counts, examples).encode())
    store.write(REPORT_FILE, json_bytes(report))


def _spread(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few of them from all over the manifest: of each domain alike, and with video and without."""
    groups: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for example in examples:
        groups.setdefault((example["domain"], example["video"]), []).append(example)
    chosen = []
    for _, found in sorted(groups.items()):
        count = min(len(found), PLAYERS // len(groups))
        chosen += [found[i * len(found) // count] for i in range(count)]
    return chosen


def _page(plan: PreparePlan, entries: list[ManifestEntry], counts: Counts, examples: list[dict[str, Any]]) -> str:
    title = f"Prepared: {_number(sum(counts['clips'].values()))} clips"
    body = [
        f"<header><h1>{title}</h1>{_facts(plan)}</header>",
        _cards(plan, counts),
        _domains(counts),
        _section("Tasks", "Clips that can serve each task.", bars(_tasks(counts))),
        _section("Lengths", "Files by the sound of them that was kept.", _lengths(counts)),
        _left_out(plan, counts),
        _section("Words of the captions", "Each counted once a clip; larger is more frequent.", cloud(counts["terms"])),
        _named(counts),
        _players(plan, entries, examples),
    ]
    return page(title, body)


def _facts(plan: PreparePlan) -> str:
    codec, video = plan.codec, plan.video
    lines = [
        f"Codec {codec.kind}, {codec.sample_rate:,} Hz, {codec.audio_channels} channel(s), clips of "
        f"{codec.seconds:.2f} s; video {video.kind}, {video.image_rate:g} and {video.motion_rate:g} a second, "
        f"{video.size} pixels.",
        f"Manifest of {_number(plan.lines)} lines (xxh3 {plan.manifest}), seed {plan.seed}.",
        f"Filters: {_filters(plan.filters)}.",
    ]
    return f'<p class="facts">{"<br>".join(map(escape, lines))}</p>'


def _filters(filters: FiltersConfig) -> str:
    """Those that are not open."""
    default = FiltersConfig()
    numbers = [f.name for f in fields(filters) if f.name not in ("classifiers", "separator")]
    said = [f"{n} {getattr(filters, n):g}" for n in numbers if getattr(filters, n) != getattr(default, n)]
    for c in filters.classifiers:
        limits = [f"at least {c.min_score:g}"] * (c.min_score is not None) + [f"at most {c.max_score:g}"] * (
            c.max_score is not None
        )
        said.append(f"{c.name} {' and '.join(limits)}")
    return "; ".join(said + ["separated"] * (filters.separator is not None)) or "whatever is whole and sounds"


def _cards(plan: PreparePlan, counts: Counts) -> str:
    clips, files = sum(counts["clips"].values()), counts["files"]
    cards = [
        ("Clips", _number(clips), f"{sum(counts['seconds'].values()) / 3600:,.2f} hours of sound"),
        ("Files", _number(files.get("kept", 0)), f"of {_number(plan.lines)}"),
        ("With video", _share(sum(counts["with video"].values()), clips), "of the clips"),
        ("With captions", _share(sum(counts["with captions"].values()), clips), "of the clips"),
        (
            "Left out",
            _number(sum(counts["rejected files"].values())),
            f"files, and {_number(sum(counts['rejected clips'].values()))} clips of others",
        ),
    ]
    drawn = (f'<div class="card"><small>{n}</small><b>{v}</b><small>{about}</small></div>' for n, v, about in cards)
    return f'<div class="cards">{"".join(drawn)}</div>'


def _domains(counts: Counts) -> str:
    rows = []
    for domain in DOMAINS:
        clips = counts["clips"].get(domain, 0)
        if clips:
            cells = [
                _number(clips),
                f"{counts['seconds'][domain] / 3600:,.2f}",
                _share(counts["with video"][domain], clips),
                _share(counts["with captions"][domain], clips),
                f"{counts['captions'][domain] / clips:.1f}",
            ]
            rows.append(f"<tr><td>{domain}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    names = ("", "clips", "hours", "with video", "with captions", "captions a clip")
    head = "".join(f"<th>{name}</th>" for name in names)
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    return _section("Kept", "", table if rows else "<p>Nothing.</p>")


def _tasks(counts: Counts) -> dict[str, float]:
    return {task: counts["tasks"].get(task, 0) for task in TASKS}


def _lengths(counts: Counts) -> str:
    names = [
        f"< {_span(0, LENGTH_EDGES[0])}",
        *(_span(a, b) for a, b in pairwise(LENGTH_EDGES)),
        f"≥ {LENGTH_EDGES[-1] // 3600} h",
    ]
    amounts = [counts["lengths"].get(str(k), 0) for k in range(len(names))]
    found = [k for k, amount in enumerate(amounts) if amount]
    shown = slice(found[0], found[-1] + 1) if found else slice(0)
    return columns(list(zip(names, amounts, strict=True))[shown], "files")


def _span(start: int, end: int) -> str:
    """Of seconds."""
    unit, size = ("s", 1) if end <= 60 else ("min", 60)
    return f"{start // size}–{end // size} {unit}" if start else f"{end // size} {unit}"


def _left_out(plan: PreparePlan, counts: Counts) -> str:
    files, clips = (bars(counts[f"rejected {kind}"], kind="bad") for kind in ("files", "clips"))
    parts = [f"<div><h3>Files</h3>{files}</div>"] * bool(files) + [f"<div><h3>Clips</h3>{clips}</div>"] * bool(clips)
    body = f'<div class="pair">{"".join(parts)}</div>' if parts else "<p>Nothing.</p>"
    return _section("Left out", "rejected.jsonl has every one with its line, reason and place.", body)


def _named(counts: Counts) -> str:
    charts = {"Sounds": "categories", "Genres": "genres", "Instruments": "instruments", "Moods": "moods"}
    drawn = [f"<div><h3>{n}</h3>{bars(counts[chart])}</div>" for n, chart in charts.items() if counts[chart]]
    return _section(
        "What sounds", "Clips in which each is annotated.", f'<div class="pair">{"".join(drawn)}</div>' * bool(drawn)
    )


def _players(plan: PreparePlan, entries: list[ManifestEntry], examples: list[dict[str, Any]]) -> str:
    by_line = {entry.line: entry for entry in entries}
    parts = []
    for example in examples:
        entry = by_line[example["line"]]
        start = entry.start + example["start"]
        try:
            clip = next(read_clips(entry.audio, entry.video, plan.codec, plan.video, start, start + example["seconds"]))
        except (MediaError, StopIteration):
            continue  # it was there when it was encoded
        parts.append(_player(plan, example, clip))
    note = "From the files themselves. Mel spectrograms, each scaled to its own loudest band."
    return _section("Some of them", note, f'<div class="players">{"".join(parts)}</div>' if parts else "")


def _player(plan: PreparePlan, example: dict[str, Any], clip: Clip) -> str:
    rate, wave = plan.codec.sample_rate, torch.from_numpy(clip.wave)
    wave = wave[:, : round(clip.seconds * rate)]
    texts = example["captions"] or [example.get("caption", "without a caption")]
    notes = [f"{key} {_value_text(example[key])}" for key in EXAMPLE_NOTES if example.get(key)]
    pictures = clip.images[:: max(1, len(clip.images) // PICTURES)][:PICTURES]
    strip = "".join(f'<img alt="" src="{picture_uri(picture)}">' for picture in pictures)
    return (
        f'<div class="sound"><p class="text">“{escape(texts[0])}”</p>'
        f"{f'<div class=strip>{strip}</div>' * bool(strip)}"
        f'<figure><img alt="spectrogram" src="{spectrogram_uri(wave, rate)}">'
        f'<div class="axis"><span>0 s</span><span>{clip.seconds:.1f} s</span></div>'
        f'<audio controls preload="metadata" src="{small_uri(wave, rate)}"></audio>'
        f'<p class="heard">{escape("; ".join([example["domain"], *notes, example["id"]]))}</p></figure></div>'
    )


def _value_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(name if count is None else f"{count} x {name}" for name, count in value.items())
    return (
        ", ".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else value
    )


def _section(title: str, note: str, body: str) -> str:
    """Empty without a body."""
    about = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{about}{body}</section>" if body else ""


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "–"
