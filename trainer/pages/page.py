"""The frame of every page: one self-contained document with one style."""

from collections.abc import Sequence
from html import escape

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


def page(title: str, body: Sequence[str]) -> str:
    """A document of these parts; empty ones are left out."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body>\n" + "\n".join(part for part in body if part) + "\n</body></html>\n"
    )
