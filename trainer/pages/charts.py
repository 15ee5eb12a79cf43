"""Charts of a page: SVG by matplotlib, and the numbers for those that the templates draw with CSS."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from .embedded_media import COLOURS as SPECTROGRAM_COLOURS
from .embedded_media import SoundComparison, spectrogram

Points = list[tuple[float, float]]

COLOURS = ("#2563a8", "#c2571a", "#3d8a4f", "#8a4fa3", "#a33d5e", "#5b6b7a")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "",  # the same chart gives the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c9d0d8",
    "axes.axisbelow": True,
    "grid.color": "#e6e9ed",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}
SMOOTH = 0.02  # share of a curve's points on either side in the moving average


def line_chart(curves: Mapping[str, Points], x_label: str) -> Markup:
    """Curves over a common axis: single values faint, their moving average strong. Empty without two points."""
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return Markup()
    with rc_context(STYLE):
        figure, axes = _figure()
        for colour, (name, points) in zip(COLOURS, curves.items(), strict=False):
            smoothed = _moving_average(points)
            axes.plot(*zip(*points, strict=True), color=colour, alpha=0.25, linewidth=0.8)
            label = f"{name.replace('_', ' ')}: {smoothed[-1][1]:.3f}"
            axes.plot(*zip(*smoothed, strict=True), color=colour, linewidth=1.6, label=label)
        # A first value far above the others would flatten all curves.
        values = sorted(y for points in curves.values() for _, y in points)
        low, high = values[0], values[math.ceil(0.995 * len(values)) - 1]
        margin = max(0.05 * (high - low), 1e-6)
        axes.set_ylim(0 if 0 <= low < 0.4 * high else low - margin, high + margin)
        axes.margins(x=0.01)
        axes.grid(axis="y")
        axes.set_xlabel(x_label, loc="right")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(curves), borderaxespad=0, handlelength=1.2)
        return _svg(figure, f"{', '.join(curves)} over {x_label}")


def columns(amounts: Sequence[tuple[str, float]], label: str) -> Markup:
    """Amounts by name as columns, in the given order. Empty without one."""
    if not amounts:
        return Markup()
    with rc_context(STYLE):
        figure, axes = _figure()
        names, heights = zip(*amounts, strict=True)
        drawn = axes.bar(names, heights, color=COLOURS[0])
        axes.bar_label(drawn, [f"{height:,.0f}" if height else "" for height in heights], padding=2)
        axes.set_yticks([])
        axes.set_xlabel(label, loc="right")
        return _svg(figure, label)


def save_spectrograms(comparisons: Sequence[SoundComparison], out: Path) -> None:
    """A PNG with one row per prompt and one column per rendition; time in seconds, mel bands from low to high."""
    names = [rendition.name for rendition in comparisons[0].renditions]
    figure = Figure(figsize=(4 * len(names), 0.3 + 1.9 * len(comparisons)), layout="constrained")
    header, *grid = figure.subplots(
        len(comparisons) + 1, len(names), squeeze=False, height_ratios=[0.1] + [1] * len(comparisons)
    )
    for axes, name in zip(header, names, strict=True):
        axes.axis("off")
        axes.text(0.5, 0, name, fontsize=12, ha="center", weight="bold")
    colours = LinearSegmentedColormap.from_list("loudness", SPECTROGRAM_COLOURS)
    for row, comparison in zip(grid, comparisons, strict=True):
        row[0].set_title(f"“{comparison.text}”", fontsize=10, loc="left")
        for axes, rendition in zip(row, comparison.renditions, strict=True):
            seconds = rendition.wave.shape[-1] / comparison.sample_rate
            picture = spectrogram(rendition.wave, comparison.sample_rate)
            axes.imshow(picture, cmap=colours, aspect="auto", extent=(0, seconds, 0, 1))
            axes.set_yticks([])
            axes.tick_params(labelbottom=comparison is comparisons[-1])
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def largest(amounts: Mapping[str, float], most: int) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The `most` largest amounts by name, and the others; equal ones in the order of the alphabet."""
    rows = sorted(amounts.items(), key=lambda item: (-item[1], item[0]))
    return rows[:most], rows[most:]


def word_sizes(amounts: Mapping[str, float], most: int = 80) -> list[tuple[str, float, float]]:
    """(word, amount, font size in rem) of the most frequent words, in the order of the alphabet."""
    words, _ = largest(amounts, most)
    if not words:
        return []
    low, high = math.log(words[-1][1]), math.log(words[0][1])
    return [(word, n, 0.8 + 1.5 * (math.log(n) - low) / max(high - low, 1e-9)) for word, n in sorted(words)]


def percent(value: float, top: float) -> str:
    """Position of a value on a line from 0 to `top`, for CSS."""
    return f"{100 * min(max(value / top, 0.0), 1.0):.1f}%"


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, label: str) -> Markup:
    """The figure as an element of a page: without prolog, namespaces and metadata, which name addresses."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    body = svg[svg.index("<defs>", svg.index("</metadata>")) :]
    body = re.sub(r' id="[\w.]+_\d+"', "", body)  # matplotlib counts in every figure from 1
    width, height = (72 * x for x in figure.get_size_inches())
    start = Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">').format(width, height, label)
    return start + Markup(body)


def _moving_average(points: Points) -> Points:
    reach, count = math.ceil(SMOOTH * len(points)), len(points)
    result = []
    for k, (x, _) in enumerate(points):
        side = min(reach, k, count - 1 - k)  # narrower at the ends, so that the line does not lag behind
        window = [y for _, y in points[k - side : k + side + 1]]
        result.append((x, sum(window) / len(window)))
    return result
