"""The report on folders of sounds: its head, its tables for the terminal, and a page with players."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import soxr
import torch

from ..core.english import first, join
from ..core.files import hash_file
from ..core.hardware import describe
from ..media.audio_decode import Wave, decode_native
from ..media.source import MediaError, open_media
from ..pages.embedded_media import Rendition, SoundComparison
from ..pages.render import write_page
from ..pages.tables import Cell, Table
from ..scorers.scorer import Scorer
from .folders import EvaluatedPrompt, SoundFolder
from .results import JudgeSettings, Row, count_reasons

NAMED = 8  # ids in a table


def report_head(reference: Path, folders: Sequence[Path], scorers: Sequence[Scorer], settings: JudgeSettings) -> Row:
    """All that the figures depend on but the sounds."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": describe() | {"threads": str(torch.get_num_threads())},
        "settings": asdict(settings),
        "reference": {"file": str(reference), "hash": hash_file(reference)},
        "folders": {folder.resolve().name: str(folder) for folder in folders},
        "scorers": [
            {"name": s.name, "rate": s.rate, **s.about, "metrics": {m.name: m.definition for m in s.metrics}}
            for s in scorers
        ],
    }


def sound_tables(report: Row) -> list[Table]:
    """All tables that have rows."""
    tables = (_results(report), _differences(report), _problems(report), _remarks(report), _scorers(report))
    return [table for table in tables if table.rows]


def _results(report: Row) -> Table:
    metrics = list(dict.fromkeys((row["metric"], row["better"]) for row in report["results"]))
    values = {(row["sounds"], row["metric"]): row for row in report["results"]}
    rows = []
    for name in ["reference", *report["folders"]]:
        cells = [_value(values.get((name, metric))) for metric, _ in metrics]
        if any(cell.text != "–" for cell in cells):
            rows.append([Cell(name), *cells])
    headings = ("", *(f"{metric} {'↑' if better == 'higher' else '↓'}" for metric, better in metrics))
    note = (
        f"{report['judged']} of {report['prompts']} prompts. 95 % bootstrap intervals over prompts. A Fréchet distance "
        f"grows as clips become fewer: compare only sets of the same size. That of the references is of one half from "
        f"the other.{_few(report)}"
    )
    return Table("Sounds", note, headings, rows)


def _few(report: Row) -> str:
    """The Fréchet distances whose covariances have more dimensions than clips, as a sentence."""
    rows = [row for row in report["results"] if "rows" in row and row["rows"] <= row["dimensions"]]
    if not rows:
        return ""
    parts = {f"{row['metric']} has {row['dimensions']} dimensions for {row['rows']} clips" for row in rows}
    return f" {join(sorted(parts))}: it says little about how far the sounds are from the references."


def _value(row: Row | None) -> Cell:
    if row is None:
        return Cell("–")
    infinity = f"; ∞ {_number(row['at_infinity'])}" if "at_infinity" in row else ""
    interval = f"{_number(row['low'])} to {_number(row['high'])}{infinity}" if "low" in row else ""
    return Cell(_number(row["value"]), interval)


def _differences(report: Row) -> Table:
    rows = [
        [
            Cell(f"{row['sounds']} − {row['against']}"),
            Cell(row["metric"]),
            Cell(f"{row['value']:+.4g}", f"{_number(row['low'])} to {_number(row['high'])}"),
            Cell(f"{row['p_holm']:.3f}"),
            Cell("yes" if row["significant"] else "no"),
        ]
        for row in report["differences"]
    ]
    note = (
        f"On the same prompts; p by exchanging the two sounds of a prompt at random, after {len(rows)} comparisons "
        f"(Holm)."
    )
    return Table("Differences", note, ("", "metric", "difference", "p", "significant"), rows)


def _problems(report: Row) -> Table:
    rows = []
    for name in dict.fromkeys(row["sounds"] for row in report["left_out"]):
        of_name = [row for row in report["left_out"] if row["sounds"] == name]
        for reason, count in count_reasons(of_name).items():
            rows.append(_ids(name, reason, count, [row["id"] for row in of_name if row["reason"] == reason]))
    note = "Their prompts are left out of all figures, in every folder."
    return Table("Left out", note, ("", "why", "sounds", "ids"), rows)


def _remarks(report: Row) -> Table:
    rows = [
        _ids(name, remark, len(ids), ids) for name, found in report["remarks"].items() for remark, ids in found.items()
    ]
    return Table("Unusual", "These are part of all figures.", ("", "what", "sounds", "ids"), rows)


def _ids(name: str, what: str, count: int, ids: Sequence[str]) -> list[Cell]:
    return [Cell(name), Cell(what), Cell(str(count)), Cell(first(ids, NAMED))]


def _scorers(report: Row) -> Table:
    rows = [
        [Cell(scorer["name"]), Cell(f"{scorer['network']}, {scorer['rate']} Hz"), Cell(f"{metric}: {definition}")]
        for scorer in report["scorers"]
        for metric, definition in scorer["metrics"].items()
    ]
    return Table("Scorers", "Weights by their hash stand in the JSON report.", ("", "network", "metric"), rows)


def compare_prompts(
    prompts: Sequence[EvaluatedPrompt], folders: Sequence[SoundFolder], chosen: Sequence[str]
) -> list[SoundComparison]:
    """The sounds of the prompts with these ids, references first. Raises ValueError for an id that is none, or is not
    whole in every folder."""
    found = []
    for key in chosen:
        prompt = next((p for p in prompts if p.id == key), None)
        if prompt is None or any(key in folder.missing for folder in folders):
            raise ValueError(f"--show {key}: no prompt with a sound in every folder; ids are like {prompts[0].id}")
        places = [("reference", prompt.reference)] if prompt.reference else []
        places += [(folder.name, folder.sounds[key]) for folder in folders]
        found.append(compare_files(prompt.text or key, places))
    return found


def compare_files(text: str, places: Sequence[tuple[str, Path]]) -> SoundComparison:
    """Sounds by name, at the rate of the first. Raises ValueError for one that is missing or cannot be decoded."""
    renditions, rate = [], 0
    for name, path in places:
        try:
            with open_media(path) as source:
                sound = decode_native(source)
        except MediaError as error:
            raise ValueError(f"{error}; give a sound that can be played") from None
        rate = rate or sound.rate
        renditions.append(Rendition(name, torch.from_numpy(_at(sound.wave, sound.rate, rate))[None]))
    return SoundComparison("prompt", text, tuple(renditions), rate)


def _at(wave: Wave, found: int, wanted: int) -> Wave:
    return wave if found == wanted else soxr.resample(wave, found, wanted)


def write_sound_page(report: Row, shown: Sequence[SoundComparison], out: Path) -> None:
    write_page(
        out,
        "sounds.html",
        title="Sounds of " + join(list(report["folders"])),
        report=report,
        tables=sound_tables(report),
        comparisons=shown,
    )


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 100 else f"{value:.1f}"
