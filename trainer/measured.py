"""What a folder of benchmark results says of the goals, and charts of them for docs/performance.md.

The files are those of `launch/bench.py --out`, named as launch/measure.sh names them.
"""

import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from .files import write_text

OURS = {"triton", "reference"}  # by device: on a GPU our kernels are Triton's, on a CPU the compiled reference
NORMS = ("layer_norm_modulate", "gated_residual", "gated_residual_layer_norm_modulate")
COLOURS = {"ours": "#2563a8", "other": "#b9c3cc"}

Row = dict[str, Any]
Panel = tuple[str, list[tuple[str, float, bool]], str]  # title, bars as name, value and whether it is ours, unit


@dataclass(frozen=True)
class Finding:
    """A figure beside its goal; without one, it is only reported."""

    what: str
    value: float
    goal: float | None = None
    most: bool = False  # the goal is a limit that the value stays below

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value <= self.goal if self.most else self.value >= self.goal

    def line(self) -> str:
        goal = "" if self.goal is None else f"{'at most' if self.most else 'at least'} {self.goal:g}"
        return f"{self.what:58} {self.value:9.3g}   {goal:14} {({True: 'met', False: 'MISSED', None: ''})[self.met]}"


def read(folder: Path) -> dict[str, Row]:
    """Results by name. Raises FileNotFoundError where there is none."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    if not found:
        raise FileNotFoundError(f"{folder}: no results of launch/bench.py --out in it; run launch/measure.sh {folder}")
    return found


def findings(results: dict[str, Row]) -> Iterator[Finding]:
    """In the order of docs/performance.md; what was not measured is left out."""
    if kernels := results.get("kernels"):
        yield from _kernels(kernels["rows"] + kernels["alternatives"])
    if train := _trained(results.get("train_full")):
        yield Finding("MFU of a training step, 2p7b", train["mfu"], 0.45)
        if other := _trained(results.get("train_fp8")):
            yield Finding("  with FP8, times its speed", other["samples_per_s"] / train["samples_per_s"], 1.2)
        if other := _trained(results.get("train_zero2")):
            yield Finding("  ZeRO-2, times the speed of ZeRO-1", other["samples_per_s"] / train["samples_per_s"])
        speeds = [r["samples_per_s"] for r in (_trained(results.get(f"train_batch{n}")) for n in (2, 4)) if r]
        speeds.append(train["samples_per_s"])
        for small, large in itertools.pairwise(speeds):
            yield Finding("  times the speed of half the micro-batch (flat: 0.98)", large / small, 0.98)
    if distill := results.get("distill"):
        yield Finding("a round of distillation, times its parts alone", distill["ratio"], 1.15, most=True)
        yield Finding("  its seconds", distill["round_s"])
        yield Finding("  its MFU", distill["mfu"])
    if infer := results.get("infer"):
        fast: dict[int, float] = {}
        for row in infer["rows"]:
            if row["way"].startswith("ours"):
                fast[row["steps"]] = min(row["ms"], fast.get(row["steps"], row["ms"]))
        yield Finding("ms of the student's 4 steps, batch 1", fast[4], 20, most=True)
        yield Finding("  the teacher's 50 guided steps, times that", fast[50] / fast[4], 12)
    if memory := results.get("memory"):
        off = abs(memory["measured_peak"] / memory["planned_peak"] - 1)
        yield Finding("peak of allocated memory, off its plan by", off, 0.1, most=True)


def _trained(result: Row | None) -> Row | None:
    return next((r for r in result["rows"] if r["variant"] == "deepspeed"), None) if result else None


def _kernels(rows: list[Row]) -> Iterator[Finding]:
    for op, way, ours, fastest in _races(rows):
        name = f"{op}, {way}"
        if op == "joint_attention":
            yield Finding(f"{name}, times the fastest alternative", fastest / ours[f"{way}_ms"], 1.0)
        elif op in NORMS:
            yield Finding(f"{name}, of the limit", ours[f"{way}_of_limit"], 0.85)
            compiled = [r[f"{way}_ms"] for r in rows if r["op"] == op and r["backend"] == "reference"]
            if compiled and ours["backend"] != "reference":
                yield Finding("  times torch.compile", compiled[0] / ours[f"{way}_ms"], 1.0)


def _races(rows: list[Row]) -> Iterator[tuple[str, str, Row, float]]:
    """Per operation and way: our row, and the milliseconds of the fastest other one."""
    for op in dict.fromkeys(r["op"] for r in rows):
        mine = [r for r in rows if r["op"] == op]
        ours = max((r for r in mine if r["backend"] in OURS), key=lambda r: r["backend"])  # "triton" where there is one
        others = [r for r in mine if r is not ours]
        for way in ("forward", "backward"):
            if others:
                yield op, way, ours, min(r[f"{way}_ms"] for r in others)


def draw(results: dict[str, Row], folder: Path) -> list[Path]:
    """One SVG for each kind of result that is there; `folder` is made where it is missing."""
    kinds: dict[str, Callable[[Row], Iterable[Panel]]] = {
        "kernels": _kernel_panels,
        "train": lambda r: [("", [_bar(x, "variant", "samples_per_s", "deepspeed") for x in r["rows"]], "samples/s")],
        "infer": _infer_panels,
    }
    drawn = []
    for name, panels in kinds.items():
        if name in results:
            drawn.append(_chart(folder / f"{name}.svg", list(panels(results[name])), results[name]["host"]))
    return drawn


def _bar(row: Row, label: str, value: str, ours: str) -> tuple[str, float, bool]:
    return row[label], row[value], row[label] == ours


def _kernel_panels(result: Row) -> Iterator[Panel]:
    rows = result["rows"] + result["alternatives"]
    for op, way, ours, _ in _races(rows):
        bars = [(r["backend"], r[f"{way}_ms"], r is ours) for r in rows if r["op"] == op]
        yield f"{op.replace('_', ' ')}, {way}", bars, "ms"


def _infer_panels(result: Row) -> Iterator[Panel]:
    for steps in dict.fromkeys(r["steps"] for r in result["rows"]):
        yield (
            f"{steps} steps",
            [_bar(r, "way", "ms", "ours, compiled") for r in result["rows"] if r["steps"] == steps],
            "ms",
        )


def _chart(path: Path, panels: list[Panel], host: Row) -> Path:
    """Lying bars, two panels a line."""
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    tall = max(len(bars) for _, bars, _ in panels)
    size = (4.6 * columns, lines * (0.6 + 0.28 * tall))
    figure, axes = plt.subplots(lines, columns, squeeze=False, figsize=size, layout="constrained")
    for axis, (title, bars, unit) in zip(axes.flat, panels, strict=False):
        names, values, ours = zip(*reversed(bars), strict=True)
        drawn = axis.barh(names, values, color=[COLOURS["ours" if mine else "other"] for mine in ours])
        axis.bar_label(drawn, fmt=lambda value: f" {value:.3g}", fontsize=8)
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xlabel(unit, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel(host["gpu"] if "gpu" in host else host["cpu"], fontsize=8, color="#5b6b7a")
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    plt.close(figure)
    write_text(path, svg.getvalue())
    return path
