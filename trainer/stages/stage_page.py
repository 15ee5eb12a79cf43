"""The page of a stage: how much was left out for which reason, and how measured values lie around their thresholds."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..manifest.forecast import Forecast
from ..pages.charts import columns
from ..pages.render import write_page
from .caption_statistics import CaptionStatistics
from .stage import StageSummary

BARS = 20  # of a histogram


def write_stage_page(
    path: Path,
    stage: str,
    summary: StageSummary,
    forecast: Forecast,
    values: Mapping[str, Mapping[float, int]],
    thresholds: Mapping[str, float],
    statistics: CaptionStatistics | None = None,
) -> None:
    """`values`: the lines of each measured value, by its name."""
    charts = [
        {"name": name, "chart": columns(histogram(found), "lines"), "threshold": thresholds.get(name)}
        for name, found in sorted(values.items())
    ]
    template = "captions.html" if statistics else "stage.html"
    title = f"{stage.capitalize()}: {summary.kept_lines:,} lines"
    write_page(path, template, title=title, summary=summary, forecast=forecast, charts_of=charts, statistics=statistics)


def histogram(values: Mapping[float, int]) -> list[tuple[str, float]]:
    """Numbers of lines between equally distant edges, each with its lower edge."""
    counts, edges = np.histogram(list(values), BARS, weights=list(values.values()))
    return [(f"{edge:.3g}", float(count)) for edge, count in zip(edges, counts, strict=False)]
