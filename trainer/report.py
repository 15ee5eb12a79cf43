"""A report as one self-contained page: it holds its pictures and sounds, and needs neither network nor scripts."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from .files import write_text
from .report_charts import interval_bar, line_chart, read_losses
from .report_media import Column, Sound, spectrogram_uri, wav_uri
from .tables import ACCURACY, Cell, Report, Table, tables, tasks_in_order

KINDS = {
    "category": "What sounds",
    "count": "How often",
    "order": "In which order",
    "timestamp": "When",
}
STYLE = """
:root { --ink: #1d2733; --soft: #5b6b7a; --line: #dfe3e8; --accent: #2563a8; --good: #3d8a4f; --bad: #b4432f; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 1080px; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.9rem; margin: 0 0 .2rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .3rem; }
h3 { font-size: .95rem; margin: 1.4rem 0 .5rem; color: var(--soft); font-weight: 600; }
p { margin: .3rem 0 .9rem; } .note, .facts { color: var(--soft); font-size: .86rem; max-width: 52rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem; margin: .6rem 0 1rem; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.7rem; font-weight: 600; line-height: 1.25; color: var(--accent); }
.card small { display: block; color: var(--soft); font-size: .78rem; line-height: 1.4; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line);
  padding: .4rem .5rem; white-space: nowrap; }
td { text-align: right; border-bottom: 1px solid var(--line); padding: .38rem .5rem; vertical-align: top; }
th:first-child, td:first-child, .words { text-align: left; } td:first-child { font-weight: 500; min-width: 7rem; }
td small { display: block; color: var(--soft); font-size: .76rem; white-space: nowrap; }
tr.model td { background: #f3f7fb; } .bar { display: block; }
.chart svg { width: 100%; height: auto; } .chart text { font-size: 11px; fill: var(--soft); }
.key { margin-right: 1.2rem; font-size: .86rem; } .key::before { content: ""; display: inline-block; width: .9em;
  height: .22em; margin-right: .45em; vertical-align: middle; background: var(--c); }
.sound { border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem 1rem; margin: .8rem 0; }
.sound .text { font-size: 1.02rem; margin: 0 0 .6rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .84rem; font-weight: 600; margin-bottom: .3rem; }
figure img { width: 100%; height: 110px; display: block; border-radius: 4px; image-rendering: auto; }
.axis { display: flex; justify-content: space-between; color: var(--soft); font-size: .7rem; margin: .1rem 0 .3rem; }
audio { width: 100%; height: 34px; } .heard { font-size: .8rem; color: var(--soft); margin: .3rem 0 0; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .2rem .7rem; align-items: center;
  font-size: .86rem; font-variant-numeric: tabular-nums; margin: .3rem 0 1rem; }
.bars i { display: block; height: .8em; background: var(--accent); border-radius: 2px; } .bars b { font-weight: 400;
  text-align: right; color: var(--soft); } .bars.bad i { background: var(--bad); }
.cloud { line-height: 2.1; text-align: center; } .cloud span { margin: 0 .45em; color: var(--accent); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 0 2.5rem; }
.players { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 1rem; }
.players .sound { margin: 0; } .strip { display: flex; gap: 4px; margin-bottom: .4rem; }
.strip img { width: 25%; border-radius: 4px; }
.right { color: var(--good); } .wrong { color: var(--bad); }
@media print { .sound, tr { break-inside: avoid; } }
"""


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


def page(title: str, body: Sequence[str]) -> str:
    """A document of these parts; empty ones are left out."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body>\n" + "\n".join(part for part in body if part) + "\n</body></html>\n"
    )


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
