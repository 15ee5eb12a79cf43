"""A report as one self-contained page: it holds its pictures and sounds, and needs neither network nor scripts."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..core.files import write_text
from ..pages.charts import interval_bar, line_chart, read_losses
from ..pages.embedded_media import Column, Sound, spectrogram_uri, wav_uri
from ..pages.page import page
from .tables import ACCURACY, Cell, Report, Table, tables, tasks_in_order

KINDS = {
    "category": "What sounds",
    "count": "How often",
    "order": "In which order",
    "timestamp": "When",
}


def write_html(report: Report, runs: Sequence[Path], sounds: Sequence[Sound], out: Path) -> None:
    """One HTML file from what `evaluate` gives; `runs` are the folders whose loss curves it shows, in their order."""
    title = report.get("title", "Evaluation of " + ", ".join(model["model"] for model in report["models"]))
    body = [
        f"<header><h1>{escape(title)}</h1>{_facts(report)}</header>",
        *(_cards(report, result) for result in report["results"]),
        *(_section(table, report) for table in tables(report)),
        *(_curves(run) for run in runs),
        _sounds(sounds),
        _judge(report["judge"]),
    ]
    write_text(out, page(title, body))


def _facts(report: Report) -> str:
    host = report["host"]
    models = "; ".join(
        f"{m['model']}: {m['parameters'] / 1e6:.2f} M parameters, {m['kind']}, {m['steps']} steps, "
        f"guidance {m['guidance']:g}"
        for m in report["models"]
    )
    machine = ", ".join([host["cpu"], *([host["gpu"]] if "gpu" in host else [])])
    versions = ", ".join(f"{name} {value}" for name, value in host.items() if name not in ("cpu", "gpu", "threads"))
    return (
        f'<p class="facts">{escape(models)}.<br>Made {escape(report["made"])} on {escape(machine)}; '
        f"threads: {escape(host['threads'])}.<br>{escape(versions)}</p>"
    )


def _cards(report: Report, result: dict[str, Any]) -> str:
    """The four accuracies of one model in large, each between what is reached by chance and by the true scenes."""
    true = report["references"][-1]
    cards = [
        f'<div class="card"><small>{escape(name.rstrip(" ↑"))}</small><b>{result[key]:.0%}</b>'
        f"<small>{result[f'{key}_low']:.0%} to {result[f'{key}_high']:.0%}<br>"
        f"chance {result['chance'][key]:.0%}, true {true[key]:.0%}</small></div>"
        for key, name in ACCURACY
    ]
    for row in report.get("efficiency", []):
        if row["model"] == result["model"]:
            cards.append(
                f'<div class="card"><small>Latency</small><b>{1000 * row["latency_s_mean"]:.0f} ms</b>'
                f"<small>± {1000 * row['latency_s_std']:.0f} ms, NFE {row['nfe']}<br>RTF {row['rtf']:.3f}</small></div>"
            )
    heading = f"{result['model']}: {result['steps']} steps, guidance {result['guidance']:g}"
    return f'<section><h3>{escape(heading)}</h3><div class="cards">{"".join(cards)}</div></section>'


def _section(table: Table, report: Report) -> str:
    bars = []
    headings = list(table.headings)
    if table.title == "Tasks":
        headings.append("")
        bars = [
            interval_bar(row["value"], row["low"], row["high"], row["control"], row["ceiling"])
            for row in tasks_in_order(report)
        ]
    models = {model["model"] for model in report["models"]}
    rows = []
    for k, cells in enumerate(table.rows):
        mark = ' class="model"' if table.title == "T2A-bench" and cells[0].text in models else ""
        drawn = [_cell(cell, table.headings[i]) for i, cell in enumerate(cells)]
        rows.append(f"<tr{mark}>{''.join(drawn)}{f'<td>{bars[k]}</td>' if bars else ''}</tr>")
    head = "".join(f"<th{_words(name)}>{escape(name)}</th>" for name in headings)
    key = "<br>Dot and bar: value and interval; grey tick: control; green tick: true scenes." if bars else ""
    return (
        f'<section><h2>{escape(table.title)}</h2><p class="note">{escape(table.note)}{key}</p>'
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></section>'
    )


def _cell(cell: Cell, heading: str) -> str:
    interval = f"<small>{escape(cell.interval)}</small>" if cell.interval else ""
    return f"<td{_words(heading)}>{escape(cell.text)}{interval}</td>"


def _words(heading: str) -> str:
    return ' class="words"' if heading == "measured" else ""


def _curves(run: Path) -> str:
    chart = line_chart(read_losses(run), "steps")
    return f"<section><h2>Training: {escape(run.name)}</h2>{chart}</section>" if chart else ""


def _sounds(sounds: Sequence[Sound]) -> str:
    parts = []
    for kind in dict.fromkeys(sound.kind for sound in sounds):
        parts.append(f"<h3>{escape(KINDS.get(kind, kind))}</h3>")
        for sound in (s for s in sounds if s.kind == kind):
            columns = "".join(_column(column, sound.sample_rate) for column in sound.columns)
            text = f'<p class="text">“{escape(sound.text)}”</p>'
            parts.append(f'<div class="sound">{text}<div class="columns">{columns}</div></div>')
    note = "Mel spectrograms, each scaled to its own loudest band. Below: what the judge heard, with times in seconds."
    return f'<section><h2>Sounds</h2><p class="note">{note}</p>{"".join(parts)}</section>' if parts else ""


def _column(column: Column, sample_rate: int) -> str:
    seconds = column.wave.shape[-1] / sample_rate
    mark = {True: '<span class="right">✓</span> ', False: '<span class="wrong">✗</span> ', None: ""}[column.right]
    heard = f'<p class="heard">{mark}{escape(column.heard)}</p>' if column.heard else ""
    return (
        f"<figure><figcaption>{escape(column.name)}</figcaption>"
        f'<img alt="spectrogram" src="{spectrogram_uri(column.wave, sample_rate)}">'
        f'<div class="axis"><span>0 s</span><span>{seconds / 2:.1f}</span><span>{seconds:.1f} s</span></div>'
        f'<audio controls preload="metadata" src="{wav_uri(column.wave, sample_rate)}"></audio>{heard}</figure>'
    )


def _judge(scores: dict[str, Any]) -> str:
    """What the judge is worth: its own answers on unseen true scenes."""
    names = {key: name.rstrip(" ↑") for key, name in ACCURACY} | {"music": "instrument and tempo"}
    lines = [
        f"{'As they are' if kind == 'raw' else 'Through the codec'}: "
        + ", ".join(f"{label} {scores[kind][key]:.2f}" for key, label in names.items())
        for kind in ("raw", "codec")
        if kind in scores
    ]
    about = "A small convolutional network that hears a clip without knowing what was asked for. On unseen true scenes:"
    return f'<section><h2>The judge</h2><p class="note">{about}<br>{"<br>".join(map(escape, lines))}</p></section>'
