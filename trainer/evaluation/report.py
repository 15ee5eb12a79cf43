"""A report as tables for the terminal, and as one self-contained page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..pages.charts import line_chart
from ..pages.embedded_media import SoundComparison
from ..pages.render import write_page
from ..training.logs import read_losses

Report = dict[str, Any]
Metrics = tuple[tuple[str, str], ...]  # key of a row, heading
ACCURACIES = (("cat_acc", "Cat-acc"), ("cnt_acc", "Cnt-acc"), ("ord_acc", "Ord-acc"), ("ts_acc", "TS-acc"))
COLUMNS: Metrics = (
    *((key, f"{name} ↑") for key, name in ACCURACIES),
    ("fd", "FD ↓"),
    ("kl", "KL ↓"),
    ("is", "IS ↑"),
)


@dataclass(frozen=True)
class Cell:
    """A value and its 95 % interval, both as text."""

    text: str
    interval: str = ""


@dataclass(frozen=True)
class Table:
    title: str
    note: str
    headings: tuple[str, ...]
    rows: list[list[Cell]]


def write_html(report: Report, runs: Sequence[Path], comparisons: Sequence[SoundComparison], out: Path) -> None:
    """One HTML file from an `EvaluationResult`; `runs` are the folders whose loss curves it shows, in their order."""
    write_page(
        out,
        "evaluation.html",
        title=report.get("title", "Evaluation of " + ", ".join(model["model"] for model in report["models"])),
        report=report,
        accuracies=list(ACCURACIES),
        tables=report_tables(report),
        task_rows=tasks_in_order(report),
        curves={run.name: line_chart(read_losses(run), "steps") for run in runs},
        comparisons=comparisons,
    )


def report_tables(report: Report) -> list[Table]:
    """All tables of a report that have rows."""
    makers = (results_table, differences_table, tasks_table, efficiency_table, speed_table)
    return [table for make in makers if (table := make(report)).rows]


def results_table(report: Report) -> Table:
    rows = [_cells(r["model"], "–", "–", "–", *_values(r, COLUMNS)) for r in report["references"]]
    for result in report["results"]:
        sampling = (result["steps"], result["nfe"], f"{result['guidance']:g}")
        rows.append(_cells(result["model"], *sampling, *_values(result, COLUMNS)))
        chance = [_number(result["chance"][key]) for key, _ in ACCURACIES]
        rows.append(_cells(f"chance: {result['model']} against other prompts", *"–––", *chance, *"–––"))
    settings = report["settings"]
    note = (
        f"{settings['prompts']} prompts of each of four types, seed {settings['seed']}. 95 % bootstrap intervals. FD "
        f"and KL are measured against the prompts' true scenes through the codec; those of the codec row are of a "
        f"second draw of scenes that follow the prompts."
    )
    return Table("T2A-bench", note, ("", "steps", "NFE", "guidance", *(name for _, name in COLUMNS)), rows)


def differences_table(report: Report) -> Table:
    rows = []
    fd = {row["model"]: row["fd"] for row in report["results"]}
    ratios = tuple((f"{key}_ratio", name) for key, name in ACCURACIES)
    for row in report.get("differences", []):
        own, other = (fd[row[key]] for key in ("model", "against"))
        difference, ratio = _number(own - other), _number(own / other) if other else "–"
        rows.append(_cells(f"{row['model']} − {row['against']}", *_values(row, ACCURACIES), difference))
        rows.append(_cells(f"{row['model']} / {row['against']}", *_values(row, ratios), ratio))
    note = "On the same prompts and from the same noise. A difference whose interval includes 0 is not significant."
    return Table("Differences", note, ("", *(name for _, name in COLUMNS[:5])), rows)


def tasks_table(report: Report) -> Table:
    rows = []
    for row in tasks_in_order(report):
        arrow = "↑" if row["better"] == "higher" else "↓"
        value = Cell(_number(row["value"]), _interval(row["low"], row["high"]))
        first = next(other["lead"] for other in report["tasks"] if other["task"] == row["task"])  # the first model's
        share = _number(row["lead"] / first) if first > 0 else "–"
        texts = (_number(row["control"]), f"{row['lead_low']:+.2f}", share, _number(row["ceiling"]))
        rows.append(_cells(_task(row, report), f"{row['metric']} {arrow}", value, *texts))
    note = (
        f"{report['settings']['tasks']} unseen clips per task. Control: the same sounds scored against the conditions "
        f"of other clips; for inpainting, a fill from the same noise without any condition, both without guidance. A "
        f"lead whose lower bound is above 0 shows that the condition is followed; then comes its mean relative to that "
        f"of {report['models'][0]['model']}. True: the true scenes through the codec.{_onsets_alone(report)}"
    )
    return Table("Tasks", note, ("", "measured", "value", "control", "lead, at least", "of the first's", "true"), rows)


def tasks_in_order(report: Report) -> list[Report]:
    """The rows of a task next to each other, whichever model they belong to."""
    names = list(dict.fromkeys(row["task"] for row in report["tasks"]))
    return sorted(report["tasks"], key=lambda row: names.index(row["task"]))


def efficiency_table(report: Report) -> Table:
    rows = []
    for row in report.get("efficiency", []):
        latency = f"{1000 * row['latency_s_mean']:.0f} ± {1000 * row['latency_s_std']:.0f} ms"
        stages = (f"{1000 * row[f'{stage}_s_mean']:.1f} ms" for stage in ("encoding", "transformer"))
        rows.append(_cells(row["model"], row["steps"], row["nfe"], latency, *stages, f"{row['rtf']:.3f}"))
    device = ", ".join(dict.fromkeys(f"{r['device']}, threads: {r['threads']}" for r in report.get("efficiency", [])))
    note = f"Text to wave at batch 1, mean ± standard deviation of 20 runs after 5 warm-ups, on {device}."
    return Table("Latency", note, ("", "steps", "NFE", "latency ↓", "of it conditioner", "transformer", "RTF ↓"), rows)


def speed_table(report: Report) -> Table:
    rows = []
    for row in report.get("efficiency", []):
        for other in row.get("against", []):
            name = f"{row['model']}, NFE {row['nfe']}, against {other['model']}, NFE {other['nfe']}"
            speeds = [
                Cell(f"{other[part]:.1f}", f"{other[f'{part}_low']:.1f} to {other[f'{part}_high']:.1f}")
                for part in ("transformer", "end_to_end")
            ]
            rows.append(_cells(name, *speeds))
    note = (
        "How many times as fast, from the latencies above: the median over the runs, which are paired by turn, and the "
        "range without their outer tenths."
    )
    return Table("Speed", note, ("", "transformer ↑", "text to wave ↑"), rows)


def as_text(table: Table) -> str:
    """For a terminal: columns aligned, intervals in brackets."""
    cells = [[c.text + (f" [{c.interval}]" if c.interval else "") for c in row] for row in table.rows]
    lines = [list(table.headings), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    body = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([table.title, *body, table.note])


def _cells(*values: Any) -> list[Cell]:
    return [value if isinstance(value, Cell) else Cell(str(value)) for value in values]


def _values(row: Report, metrics: Metrics) -> list[Cell]:
    return [Cell(_number(row[key]), _interval(row[f"{key}_low"], row[f"{key}_high"])) for key, _ in metrics]


def _task(row: Report, report: Report) -> str:
    return f"{row['task']}, {row['model']}" if len(report["models"]) > 1 else str(row["task"])


def _onsets_alone(report: Report) -> str:
    """The weaker test that accompanies the F1 of events, as a sentence."""
    parts = []
    for row in tasks_in_order(report):
        if onsets := row.get("onsets_alone"):
            control = f"control {_number(onsets['control'])}, lead at least {onsets['lead_low']:+.2f}"
            parts.append(f"{_task(row, report)} {_number(onsets['value'])} ({control})")
    return f" F1 of onsets alone, whatever their categories: {', '.join(parts)}." if parts else ""


def _number(value: float) -> str:
    return f"{value:.2f}"


def _interval(low: float, high: float) -> str:
    return f"{low:.2f} to {high:.2f}"
