"""A report as tables for the terminal, and as one self-contained page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...models import strict
from ...models.sampler import guidance_words
from ..pages.charts import line_chart
from ..pages.embedded_media import SoundComparison
from ..pages.render import write_page
from ..pages.tables import Cell, Table
from ..sound_evaluation.report import sound_tables
from ..training.logs import read_losses
from .latency import PARTS
from .task_benchmark import PRECEDING

Report = dict[str, Any]
Metrics = tuple[tuple[str, str], ...]  # key of a row, heading
ACCURACIES = (("cat_acc", "Cat-acc"), ("cnt_acc", "Cnt-acc"), ("ord_acc", "Ord-acc"), ("ts_acc", "TS-acc"))
COLUMNS: Metrics = (
    *((key, f"{name} ↑") for key, name in ACCURACIES),
    ("fd", "FD ↓"),
    ("kl", "KL ↓"),
    ("is", "IS ↑"),
)


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
    tables = [*_figures(report), efficiency_table(report), speed_table(report)]
    return [table for table in tables if table.rows]


def read_tables(file: Path) -> list[Table]:
    """The figures in a report of launch/evaluate.py, of weights or of folders of sounds; latencies are left out.

    Raises ValueError where the file is no such report.
    """
    try:
        report = strict.parse_json(file.read_bytes())
        if "scorers" in report:
            return sound_tables(report)
        tables = _figures(report)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no report of launch/evaluate.py ({error!r})") from None
    return [table for table in tables if table.rows]


def _figures(report: Report) -> list[Table]:
    """All tables but those of latencies."""
    return [make(report) for make in (results_table, differences_table, extra_table, tasks_table, mixtures_table)]


def results_table(report: Report) -> Table:
    rows = [_cells(r["model"], "–", "–", "–", *_values(r, COLUMNS)) for r in report["references"]]
    for result in report["results"]:
        guidance = guidance_words(result["guidance"], result["guidance_interval"])
        sampling = (result["steps"], result["nfe"], guidance)
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


def extra_table(report: Report) -> Table:
    """A category that ordinary scenes do not have."""
    extra = report.get("extra", {"category": "", "references": [], "results": []})
    columns = (("heard", "heard ↑"), *COLUMNS[: len(ACCURACIES) + 1])
    rows = [_cells(row["model"], *_values(row, columns)) for row in (*extra["references"], *extra["results"])]
    note = f"{extra['category']!r}, which ordinary scenes do not have, in every prompt; heard: it is in the sound."
    return Table("A new sound", note, ("", *(name for _, name in columns)), rows)


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


def mixtures_table(report: Report) -> Table:
    """What text and video add to a given sound, and whether what precedes a clip leads it."""
    rows = []
    for row in tasks_in_order(report):
        for name, mixture in row.get("mixtures", {}).items():
            arrow = "↑" if row["better"] == "higher" else "↓"
            value = Cell(_number(mixture["value"]), _interval(mixture["low"], mixture["high"]))
            texts = (_number(mixture["control"]), f"{mixture['lead_low']:+.2f}")
            rows.append(_cells(f"{_task(row, report)}, with {name}", f"{row['metric']} {arrow}", value, *texts))
    note = (
        "On the clips of the tasks, from the same noise. Text and video stand beside the given sound; the control is "
        f"the sound alone, so that a lead above 0 shows what they add. With {PRECEDING} none of the clip is given; the "
        "control is the music of other clips."
    )
    return Table("Mixtures", note, ("", "measured", "value", "control", "lead, at least"), rows)


def tasks_in_order(report: Report) -> list[Report]:
    """The rows of a task next to each other, whichever model they belong to."""
    names = list(dict.fromkeys(row["task"] for row in report["tasks"]))
    return sorted(report["tasks"], key=lambda row: names.index(row["task"]))


def efficiency_table(report: Report) -> Table:
    rows = []
    for row in report.get("efficiency", []):
        latency = f"{1000 * row['latency_s_mean']:.0f} ± {1000 * row['latency_s_std']:.0f} ms"
        stages = (f"{1000 * row[f'{part}_s_mean']:.1f} ms" for part in PARTS)
        rows.append(_cells(row["model"], row["steps"], row["nfe"], latency, *stages, f"{row['rtf']:.3f}"))
    device = ", ".join(dict.fromkeys(f"{r['device']}, threads: {r['threads']}" for r in report.get("efficiency", [])))
    note = f"Text to wave at batch 1, mean ± standard deviation of 20 runs after 5 warm-ups, on {device}."
    return Table("Latency", note, ("", "steps", "NFE", "latency ↓", "of it text encoder", *PARTS[1:], "RTF ↓"), rows)


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
