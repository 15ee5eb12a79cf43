"""Benchmark results against their goals, and charts of them for docs/performance.md.

The files are those of `launch/bench.py --out`, named as launch/measure.sh names them.
"""

import io
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from ..core.files import write_text

OURS = {True: "triton", False: "reference"}  # on a GPU our kernels are Triton's, on a CPU the compiled reference
NORMS = ("layer_norm_modulate", "gated_residual", "gated_residual_layer_norm_modulate")
COLOURS = {"ours": "#2563a8", "other": "#b9c3cc"}

Row = dict[str, Any]
Panel = tuple[str, list[tuple[str, float, bool]], str]  # title; bars: name, value, whether it is ours; unit


@dataclass(frozen=True)
class Finding:
    """A figure and its goal. Without a goal it is only reported; without a value it did not run."""

    name: str
    value: float | None
    goal: float | None = None
    at_most: bool = False  # the goal is an upper limit
    stretch: float | None = None  # a goal beyond the goal

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        if self.value is None:
            return False
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    def line(self) -> str:
        goal = "" if self.goal is None else f"{'at most' if self.at_most else 'at least'} {self.goal:g}"
        if self.value is None:
            return f"{self.name:58} {'':9}   {goal:14} DID NOT RUN"
        verdict = {True: "met", False: "MISSED", None: ""}[self.met]
        if self.stretch is not None:
            verdict += f"; {self.stretch:g} {'met' if self.value >= self.stretch else 'missed'}"
        return f"{self.name:58} {self.value:9.3g}   {goal:14} {verdict}".rstrip()


def read_results(folder: Path) -> dict[str, Row]:
    """Results by name. Raises FileNotFoundError if there is none."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    if not results:
        raise FileNotFoundError(f"{folder}: no results of launch/bench.py --out in it; run launch/measure.sh {folder}")
    return results


def findings(results: dict[str, Row]) -> Iterator[Finding]:
    """The findings in the order of docs/performance.md; what was not measured is left out."""
    if kernels := results.get("kernels"):
        yield from _kernel_findings(kernels["rows"] + kernels["alternatives"], "gpu" in kernels["host"])
        yield from (Finding(text, None) for text in kernels.get("failed", []))
    if train := _train_row(results.get("train_full")):
        yield Finding("MFU of a training step, 2p7b", train["mfu"], 0.45, stretch=0.55)
        if "peak_bytes" in train:
            yield Finding("  GB allocated at most", train["peak_bytes"] / 1e9)
        if other := _train_row(results.get("train_plain"), "plain"):
            yield Finding("  times the speed of a plain loop", train["samples_per_s"] / other["samples_per_s"])
        for name, way in (("train_fp8", "FP8"), ("train_fp8_rows", "FP8 by row")):
            if other := _train_row(results.get(name)):
                yield Finding(f"  with {way}, times its speed", other["samples_per_s"] / train["samples_per_s"], 1.2)
        if other := _train_row(results.get("train_zero2")):
            yield Finding("  ZeRO-2, times the speed of ZeRO-1", other["samples_per_s"] / train["samples_per_s"])
        speeds = [r["samples_per_s"] for r in _rows_by_batch(results["train_full"])]
        for small, large in itertools.pairwise(speeds):
            yield Finding("  times the speed of the next smaller batch (flat: 0.98)", large / small, 0.98)
    if distill := results.get("distill"):
        if "ratio" in distill:
            yield Finding("a round of distillation, times its parts alone", distill["ratio"], 1.15, at_most=True)
        if "peak_bytes" in distill:
            yield Finding("a round of distillation: GB allocated at most", distill["peak_bytes"] / 1e9)
        yield Finding("  its seconds", distill["round_s"])
        yield Finding("  its MFU", distill["mfu"])
    if sample := results.get("sample"):
        ms = {(row["way"], row["steps"]): row["ms"] for row in sample["rows"]}
        for way in dict.fromkeys(way for way, _ in ms if way.startswith("ours")):
            yield Finding(f"ms of the student's 4 steps, batch 1, {way}", ms[way, 4], 20, at_most=True)
            yield Finding("  the teacher's 50 guided steps, times that", ms[way, 50] / ms[way, 4], 12)
    for name, of in (("memory", ""), ("memory_distill", " of distillation")):
        if memory := results.get(name):
            off = abs(memory["measured_peak"] / memory["planned_peak"] - 1)
            yield Finding(f"peak of allocated memory{of}, off its plan by", off, 0.1, at_most=True)


def _train_row(result: Row | None, variant: str = "deepspeed") -> Row | None:
    return next((r for r in result["rows"] if r["variant"] == variant), None) if result else None


def _rows_by_batch(result: Row) -> list[Row]:
    """DeepSpeed's rows, by the number of samples in a step."""
    return sorted((r for r in result["rows"] if r["variant"].startswith("deepspeed")), key=lambda r: r["samples"])


def _kernel_findings(rows: list[Row], on_gpu: bool) -> Iterator[Finding]:
    pairs = list(_our_rows(rows, on_gpu))
    for op in dict.fromkeys(r["op"] for r in rows):
        if not any(op == compared for compared, *_ in pairs):
            yield Finding(f"{op}, our kernel", None, 1.0)
    for op, way, ours, fastest in pairs:
        name = f"{op}, {way}"
        if op == "joint_attention":
            yield Finding(f"{name}, times the fastest alternative", fastest / ours[f"{way}_ms"], 1.0, stretch=1.3)
        elif op in NORMS:
            yield Finding(f"{name}, of the limit", ours[f"{way}_of_limit"], 0.85)
            compiled = [r[f"{way}_ms"] for r in rows if r["op"] == op and r["backend"] == "reference"]
            if compiled and ours["backend"] != "reference":
                yield Finding("  times torch.compile", compiled[0] / ours[f"{way}_ms"], 1.0)


def _our_rows(rows: list[Row], on_gpu: bool) -> Iterator[tuple[str, str, Row, float]]:
    """Per operation and way: our row, and the milliseconds of the fastest alternative; nothing if ours did not run."""
    for op in dict.fromkeys(r["op"] for r in rows):
        all_rows = [r for r in rows if r["op"] == op]
        ours = next((r for r in all_rows if r["backend"] == OURS[on_gpu]), None)
        if ours is None:
            continue
        others = [r for r in all_rows if r is not ours]
        for way in ("forward", "backward"):
            if others:
                yield op, way, ours, min(r[f"{way}_ms"] for r in others)


def draw_charts(results: dict[str, Row], folder: Path) -> list[Path]:
    """One SVG per kind of result that is there; `folder` is made if it is missing."""
    kinds: dict[str, Iterable[Panel]] = {
        "kernels": _kernel_panels(results["kernels"]) if "kernels" in results else (),
        "train": _train_panels({name: r for name, r in results.items() if name.split("_")[0] == "train"}),
        "sample": _sample_panels(results["sample"]) if "sample" in results else (),
    }
    drawn = []
    for name, panels in kinds.items():
        if drawn_panels := list(panels):
            host = next(r["host"] for stem, r in results.items() if stem.split("_")[0] == name)
            drawn.append(_chart(folder / f"{name}.svg", drawn_panels, host))
    return drawn


def _train_panels(results: dict[str, Row]) -> Iterator[Panel]:
    """Every variant of every measurement, and ours by the number of samples if there are several."""
    bars = [
        (r["variant"] if name in ("train", "train_full") else f"{r['variant']}, {name.removeprefix('train_')}", r)
        for name, result in results.items()
        for r in result["rows"]
        if "batch" not in r["variant"]
    ]
    if bars:
        drawn = [(name, r["samples_per_s"], r["variant"] == "deepspeed") for name, r in bars]
        yield "a training step", drawn, "samples/s"
    for result in results.values():
        if len(sizes := _rows_by_batch(result)) > 1:
            yield "by batch", [(f"{r['samples']} samples", r["samples_per_s"], True) for r in sizes], "samples/s"


def _bar(row: Row, label: str, value: str, ours: str) -> tuple[str, float, bool]:
    return row[label], row[value], row[label].startswith(ours)


def _kernel_panels(result: Row) -> Iterator[Panel]:
    rows = result["rows"] + result["alternatives"]
    for op, way, ours, _ in _our_rows(rows, "gpu" in result["host"]):
        bars = [(r["backend"], r[f"{way}_ms"], r is ours) for r in rows if r["op"] == op]
        yield f"{op.replace('_', ' ')}, {way}", bars, "ms"


def _sample_panels(result: Row) -> Iterator[Panel]:
    for steps in dict.fromkeys(r["steps"] for r in result["rows"]):
        yield (
            f"{steps} steps",
            [_bar(r, "way", "ms", "ours") for r in result["rows"] if r["steps"] == steps],
            "ms",
        )


def _chart(path: Path, panels: list[Panel], host: Row) -> Path:
    """Horizontal bars, two panels per row."""
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    tall = max(len(bars) for _, bars, _ in panels)
    size = (4.6 * columns, lines * (0.6 + 0.28 * tall))
    figure, axes = plt.subplots(lines, columns, squeeze=False, figsize=size, layout="constrained")
    for axis, (title, bars, unit) in zip(axes.flat, panels, strict=False):
        names, values, ours = zip(*reversed(bars), strict=True)
        drawn = axis.barh(names, values, color=[COLOURS["ours" if mine else "other"] for mine in ours])
        axis.bar_label(drawn, fmt=lambda value: f"{value:.3g}", padding=3, fontsize=8)
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xlabel(unit, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel(host["gpu"] if "gpu" in host else host["cpu"], fontsize=8, color="#5b6b7a")
    svg = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none"}):  # words stay words
        figure.savefig(svg, format="svg", metadata={"Date": None})
    plt.close(figure)
    write_text(path, svg.getvalue())
    return path
