"""Charts of a page as inline SVG: loss curves, and intervals beside their control."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

Points = list[tuple[float, float]]

LOSSES = ("loss", "warm_start", "dm", "adversarial", "fake", "discriminator")  # of pretraining, and of distillation
COLOURS = ("#2563a8", "#c2571a", "#3d8a4f", "#8a4fa3", "#a33d5e", "#5b6b7a")
WIDTH, HEIGHT = 760, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 34
SMOOTH = 0.02  # of a curve's points on either side are averaged for the strong line


def read_losses(run: Path) -> dict[str, Points]:
    """The losses of a run's metrics.jsonl by name, (step, value) each; nothing where there is no such file."""
    path = run / "metrics.jsonl"
    curves: dict[str, Points] = {}
    lines = path.read_text().splitlines() if path.is_file() else []
    for line in lines:
        if not line.endswith("}"):
            continue  # a run that is still writing
        values: dict[str, Any] = json.loads(line)
        for name, value in values.items():
            if name in LOSSES and math.isfinite(value):
                curves.setdefault(name, []).append((float(values["step"]), float(value)))
    return curves


def line_chart(curves: dict[str, Points], x_label: str) -> str:
    """Curves over a common axis; single values faint, their moving average strong. Empty without two points."""
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return ""
    xs = [x for points in curves.values() for x, _ in points]
    # A first value far above the rest would press everything else to the floor.
    ys = sorted(y for points in curves.values() for _, y in points)
    x_range, y_range = (min(xs), max(xs)), _padded(ys[0], ys[max(0, math.ceil(0.995 * len(ys)) - 1)])
    parts = [_axes(x_range, y_range, x_label)]
    legend = []
    for colour, (name, points) in zip(COLOURS * len(curves), curves.items(), strict=False):
        for line, style in ((points, 'opacity="0.25"'), (_smoothed(points), 'stroke-width="2"')):
            path = " ".join(f"{_x(x, x_range):.1f},{_y(y, y_range):.1f}" for x, y in line)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" {style}/>')
        legend.append(f'<span class="key" style="--c:{colour}">{escape(name)}: {_smoothed(points)[-1][1]:.3f}</span>')
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss over steps">{"".join(parts)}</svg>'
    return f'<div class="chart">{svg}<p class="legend">{"".join(legend)}</p></div>'


def bars(amounts: Mapping[str, float], most: int = 20, kind: str = "") -> str:
    """The largest amounts by name as lying bars, red for the `kind` "bad"; the others together. Empty without one."""
    rows = sorted(amounts.items(), key=lambda item: (-item[1], item[0]))
    if not rows or not rows[0][1]:
        return ""
    top = rows[0][1]
    drawn = "".join(
        f'<span>{escape(name)}</span><i style="width:{100 * amount / top:.1f}%"></i><b>{amount:,.0f}</b>'
        for name, amount in rows[:most]
    )
    rest = f"<span>{len(rows) - most} more</span><span></span><b>{sum(a for _, a in rows[most:]):,.0f}</b>"
    return f'<div class="bars {kind}">{drawn}{rest if len(rows) > most else ""}</div>'


def columns(amounts: Sequence[tuple[str, float]], label: str) -> str:
    """Amounts by name as standing columns in the order that is given. Empty without one."""
    if not amounts:
        return ""
    width, top = (WIDTH - LEFT - RIGHT) / len(amounts), max(amount for _, amount in amounts) or 1
    parts = []
    for k, (name, amount) in enumerate(amounts):
        middle, height = LEFT + (k + 0.5) * width, (HEIGHT - TOP - BOTTOM - 14) * amount / top
        base = HEIGHT - BOTTOM
        corner = f'x="{middle - 0.4 * width:.1f}" y="{base - height:.1f}"'
        parts.append(f'<rect {corner} width="{0.8 * width:.1f}" height="{height:.1f}" fill="{COLOURS[0]}" rx="2"/>')
        parts.append(f'<text x="{middle:.1f}" y="{base + 17}" text-anchor="middle">{escape(name)}</text>')
        if amount:
            parts.append(
                f'<text x="{middle:.1f}" y="{base - height - 5:.1f}" text-anchor="middle">{amount:,.0f}</text>'
            )
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(label)}</text>')
    line = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}" stroke="#c9d0d8"/>'
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{line}{"".join(parts)}</svg>'
    return f'<div class="chart">{svg}</div>'


def cloud(amounts: Mapping[str, float], most: int = 80) -> str:
    """The most frequent words in the order of the alphabet, the larger the more frequent."""
    words = dict(sorted(amounts.items(), key=lambda item: (-item[1], item[0]))[:most])
    if not words:
        return ""
    low, high = math.log(min(words.values())), math.log(max(words.values()))
    sizes = {w: 0.8 + 1.5 * (math.log(n) - low) / max(high - low, 1e-9) for w, n in words.items()}
    drawn = " ".join(
        f'<span style="font-size:{sizes[word]:.2f}rem" title="{words[word]:,.0f}">{escape(word)}</span>'
        for word in sorted(words)
    )
    return f'<p class="cloud">{drawn}</p>'


def interval_bar(value: float, low: float, high: float, control: float, ceiling: float) -> str:
    """A dot with its interval on a line from 0 to the largest of all; a tick for the control, one for the ceiling."""
    width, height, top = 170, 18, max(high, control, ceiling, 1e-9) * 1.04

    def at(x: float) -> float:
        return 4 + (width - 8) * min(max(x, 0.0), top) / top

    return (
        f'<svg class="bar" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{value:.2f}, interval {low:.2f} to {high:.2f}, control {control:.2f}">'
        f'<line x1="4" x2="{width - 4}" y1="9" y2="9" stroke="#dfe3e8"/>'
        f'<line x1="{at(ceiling):.1f}" x2="{at(ceiling):.1f}" y1="3" y2="15" stroke="#3d8a4f" stroke-width="2"/>'
        f'<line x1="{at(control):.1f}" x2="{at(control):.1f}" y1="3" y2="15" stroke="#8a94a0" stroke-width="2"/>'
        f'<line x1="{at(low):.1f}" x2="{at(high):.1f}" y1="9" y2="9" stroke="{COLOURS[0]}" stroke-width="3"/>'
        f'<circle cx="{at(value):.1f}" cy="9" r="4" fill="{COLOURS[0]}"/></svg>'
    )


def _axes(x_range: tuple[float, float], y_range: tuple[float, float], x_label: str) -> str:
    parts = []
    for y in _ticks(*y_range):
        place = _y(y, y_range)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}" stroke="#e6e9ed"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{place + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in _ticks(*x_range):
        place = _x(x, x_range)
        parts.append(f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x_label)}</text>')
    return "".join(parts)


def _x(x: float, x_range: tuple[float, float]) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (x - x_range[0]) / max(x_range[1] - x_range[0], 1e-9)


def _y(y: float, y_range: tuple[float, float]) -> float:
    share = min(max((y - y_range[0]) / (y_range[1] - y_range[0]), 0.0), 1.0)
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = max(0.05 * (high - low), 1e-6)
    return (0.0 if 0 <= low < 0.4 * high else low - margin), high + margin


def _ticks(low: float, high: float) -> Sequence[float]:
    """Four to eight round numbers."""
    raw = max(high - low, 1e-9) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(k * power for k in (1, 2, 5, 10) if k * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _smoothed(points: Points) -> Points:
    reach, count = math.ceil(SMOOTH * len(points)), len(points)
    result = []
    for k, (x, _) in enumerate(points):
        side = min(reach, k, count - 1 - k)  # narrower at the ends, so that the line does not lag behind
        near = [y for _, y in points[k - side : k + side + 1]]
        result.append((x, sum(near) / len(near)))
    return result
