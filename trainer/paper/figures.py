"""Figures of reports, by the names of their measures."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models import strict
from ..core.english import join
from .tables_file import TableRow, read_report

EMBEDDED = {  # keys of a report on weights of the scenes
    "cat_acc": "Cat-acc",
    "cnt_acc": "Cnt-acc",
    "ord_acc": "Ord-acc",
    "ts_acc": "TS-acc",
    "fd": "FD",
    "kl": "KL",
    "is": "IS",
}
REFERENCE = "reference"
LARGEST = 1e12  # of a figure: more is a mistake


@dataclass(frozen=True)
class Figure:
    """A value, with its 95 % interval or its standard deviation over runs where the report has one."""

    value: float
    low: float | None = None
    high: float | None = None
    std: float | None = None


@dataclass(frozen=True)
class RowFigures:
    """All that the reports of a row say: figures by measure, and evaluations of the network where a report has them."""

    figures: dict[str, Figure]
    nfe: int | None


def row_figures(row: TableRow, folder: Path) -> RowFigures:
    """Reads the reports of a row; relative paths start from `folder`.

    Raises ValueError where one is missing, is no report, does not have the row's sounds, or two have the same measure.
    """
    found: dict[str, Figure] = {}
    nfe = row.nfe
    for name in row.reports:
        path = folder / name
        report = read_report(path)
        try:
            figures, evaluations = _figures_of(report, row)
        except _NotThereError as error:
            raise ValueError(f"{path}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"{path}: no report of launch/evaluate.py or launch/bench.py latency ({error!r})"
            ) from None
        if twice := found.keys() & figures.keys():
            raise ValueError(f"{path}: another report of the same row has {join(sorted(twice))} too; give one of them")
        found |= figures
        nfe = nfe or evaluations
    return RowFigures(found, nfe)


class _NotThereError(Exception):
    """A report does not have what a row asks of it."""


def _figures_of(report: Mapping[str, Any], row: TableRow) -> tuple[dict[str, Figure], int | None]:
    if "results" not in report and "efficiency" not in report:
        raise KeyError("results")
    found: dict[str, Figure] = {}
    nfe = None
    results = report.get("results", [])
    if results and "metric" in results[0]:
        if not all(isinstance(r[key], str) for r in results for key in ("metric", "sounds")):
            raise TypeError("a metric or a folder without a name")
        name = _name(row, [r["sounds"] for r in results if r["sounds"] != REFERENCE] or [REFERENCE])
        found = {r["metric"]: _figure(r, "value", "low", "high") for r in results if r["sounds"] == name}
    elif results:
        name = _name(row, [r["model"] for r in results])
        (result,) = [r for r in results if r["model"] == name]
        for key, metric in EMBEDDED.items():
            found[metric] = _figure(result, key, f"{key}_low", f"{key}_high")
        nfe = int(result["nfe"])
    if latency := _latency(report.get("efficiency", []), row):
        found["Latency"] = Figure(_finite(latency["latency_s_mean"]), std=_finite(latency["latency_s_std"]))
        found["RTF"] = Figure(_finite(latency["rtf"]))
        nfe = int(latency["nfe"])
    return found, nfe


def _name(row: TableRow, names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    if row.sounds:
        if row.sounds not in names:
            raise _NotThereError(f"has no sounds {row.sounds!r}; it has {join(names)}")
        return row.sounds
    if len(names) > 1:
        raise _NotThereError(f"has {join(names)}; name one of them in the row, as `sounds`")
    return names[0]


def _latency(rows: list[dict[str, Any]], row: TableRow) -> dict[str, Any] | None:
    """The latency at the row's steps, of the row's weights where there are several."""
    if not rows or row.steps is None:
        return None
    named = [r for r in rows if r["model"] == row.sounds] or rows  # a folder of sounds may be called otherwise
    same = [r for r in named if r["steps"] == row.steps]
    if not same:
        raise _NotThereError(f"has no latency at {row.steps} steps; it has {join([str(r['steps']) for r in named])}")
    own = [r for r in same if r["model"] == row.sounds] if len(same) > 1 else same
    if len(own) != 1:
        names = join([str(r["model"]) for r in same])
        raise _NotThereError(f"has latencies at {row.steps} steps of {names}; name one of them as `sounds`")
    return own[0]


def _figure(row: Mapping[str, Any], value: str, low: str, high: str) -> Figure:
    return Figure(_finite(row[value]), *(_finite(row[k]) if row.get(k) is not None else None for k in (low, high)))


def _finite(value: object) -> float:
    """Raises ValueError where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        raise ValueError(f"{strict.shown(repr(value))} is no finite number")
    return float(value)
