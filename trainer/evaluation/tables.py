"""A report's rows as tables, for the terminal and for a page."""

from dataclasses import dataclass
from typing import Any

Report = dict[str, Any]
ACCURACY = (("cat_acc", "Cat-acc ↑"), ("cnt_acc", "Cnt-acc ↑"), ("ord_acc", "Ord-acc ↑"), ("ts_acc", "TS-acc ↑"))
QUALITY = (("fd", "FD ↓"), ("kl", "KL ↓"), ("is", "IS ↑"))


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


def tables(report: Report) -> list[Table]:
    """All that a report holds."""
    made = (
        results_table(report),
        differences_table(report),
        tasks_table(report),
        efficiency_table(report),
        speed_table(report),
    )
    return [table for table in made if table.rows]


def results_table(report: Report) -> Table:
    metrics = ACCURACY + QUALITY
    rows = [[Cell(r["model"]), *(Cell("–") for _ in range(3)), *_values(r, metrics)] for r in report["references"]]
    for result in report["results"]:
        how = [Cell(str(result["steps"])), Cell(str(result["nfe"])), Cell(f"{result['guidance']:g}")]
        rows.append([Cell(result["model"]), *how, *_values(result, metrics)])
        chance = [Cell(_number(result["chance"][key])) for key, _ in ACCURACY]
        rows.append([Cell(f"chance: {result['model']} against other prompts"), *(Cell("–") for _ in range(3)), *chance])
        rows[-1] += [Cell("–") for _ in QUALITY]
    each = report["plan"]["prompts"]
    note = (
        f"{each} prompts of each of four types, seed {report['plan']['seed']}. 95 % bootstrap intervals. FD and KL are "
        f"taken against the prompts' true scenes through the codec; the codec's own are those of a second draw of "
        f"scenes that follow the prompts."
    )
    return Table("T2A-bench", note, ("", "steps", "NFE", "guidance", *(name for _, name in metrics)), rows)


def differences_table(report: Report) -> Table:
    rows = []
    fd = {row["model"]: row["fd"] for row in report["results"]}
    ratios = tuple((f"{key}_ratio", name) for key, name in ACCURACY)
    for row in report.get("differences", []):
        own, other = (fd[row[key]] for key in ("model", "against"))
        rows.append([Cell(f"{row['model']} − {row['against']}"), *_values(row, ACCURACY), Cell(_number(own - other))])
        times = Cell(_number(own / other) if other else "–")
        rows.append([Cell(f"{row['model']} / {row['against']}"), *_values(row, ratios), times])
    note = "On the same prompts and from the same noise; a difference whose interval holds 0 tells the two not apart."
    return Table("Differences", note, ("", *(name for _, name in ACCURACY), "FD ↓"), rows)


def tasks_table(report: Report) -> Table:
    rows = []
    for row in tasks_in_order(report):
        arrow = "↑" if row["better"] == "higher" else "↓"
        value = Cell(_number(row["value"]), _interval(row["low"], row["high"]))
        own = next(other["lead"] for other in report["tasks"] if other["task"] == row["task"])  # the first model's
        texts = [_number(row["control"]), f"{row['lead_low']:+.2f}", _number(row["lead"] / own) if own > 0 else "–"]
        cells = [Cell(text) for text in (*texts, _number(row["ceiling"]))]
        rows.append([Cell(_task(row, report)), Cell(f"{row['metric']} {arrow}"), value, *cells])
    clips = report["plan"]["tasks"]
    note = (
        f"{clips} unseen clips a task. Control: the same sounds scored against the conditions of the other clips; for "
        f"inpainting, a fill from the same noise without any condition, both without guidance. The lead's lower bound "
        f"is above 0 where the condition is followed; then its mean over that of "
        f"{report['models'][0]['model']}. True: the true scenes through the codec.{_onsets_alone(report)}"
    )
    return Table("Tasks", note, ("", "measured", "value", "control", "lead, at least", "of the first's", "true"), rows)


def tasks_in_order(report: Report) -> list[Report]:
    """The rows of a task beside one another, whichever model they are of."""
    names = list(dict.fromkeys(row["task"] for row in report["tasks"]))
    return sorted(report["tasks"], key=lambda row: names.index(row["task"]))


def efficiency_table(report: Report) -> Table:
    rows = []
    for row in report.get("efficiency", []):
        latency = f"{1000 * row['latency_s_mean']:.0f} ± {1000 * row['latency_s_std']:.0f} ms"
        parts = (f"{1000 * row[f'{part}_s_mean']:.1f} ms" for part in ("encoding", "transformer"))
        texts = (row["model"], str(row["steps"]), str(row["nfe"]), latency, *parts, f"{row['rtf']:.3f}")
        rows.append([Cell(text) for text in texts])
    device = ", ".join(dict.fromkeys(f"{r['device']}, threads: {r['threads']}" for r in report.get("efficiency", [])))
    note = f"Text to wave at batch 1, mean ± standard deviation of 20 runs after 5 warm-ups, on {device}."
    return Table("Latency", note, ("", "steps", "NFE", "latency ↓", "of it conditioner", "transformer", "RTF ↓"), rows)


def speed_table(report: Report) -> Table:
    rows = []
    for row in report.get("efficiency", []):
        for other in row.get("against", []):
            named = f"{row['model']}, NFE {row['nfe']}, against {other['model']}, NFE {other['nfe']}"
            times = [
                Cell(f"{other[part]:.1f}", f"{other[f'{part}_low']:.1f} to {other[f'{part}_high']:.1f}")
                for part in ("transformer", "end_to_end")
            ]
            rows.append([Cell(named), *times])
    note = (
        "How many times as fast: the median of the turns of the latencies above, each turn's two beside one another, "
    )
    note += "and all but the outer tenths of them."
    return Table("Speed", note, ("", "transformer ↑", "text to wave ↑"), rows)


def as_text(table: Table) -> str:
    """For a terminal: columns aligned, intervals in brackets."""
    cells = [[c.text + (f" [{c.interval}]" if c.interval else "") for c in row] for row in table.rows]
    lines = [list(table.headings), *cells]
    widths = [max(len(line[k]) for line in lines) for k in range(len(table.headings))]
    body = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([table.title, *body, table.note])


def _values(row: Report, metrics: tuple[tuple[str, str], ...]) -> list[Cell]:
    return [Cell(_number(row[key]), _interval(row[f"{key}_low"], row[f"{key}_high"])) for key, _ in metrics]


def _task(row: Report, report: Report) -> str:
    return f"{row['task']}, {row['model']}" if len(report["models"]) > 1 else str(row["task"])


def _onsets_alone(report: Report) -> str:
    """The weaker test beside the F1 of events, as a sentence."""
    parts = []
    for row in tasks_in_order(report):
        alone = row.get("onsets_alone")
        if alone:
            control = f"control {_number(alone['control'])}, lead at least {alone['lead_low']:+.2f}"
            parts.append(f"{_task(row, report)} {_number(alone['value'])} ({control})")
    return f" F1 of onsets alone, whatever sounds: {', '.join(parts)}." if parts else ""


def _number(value: float) -> str:
    return f"{value:.2f}"


def _interval(low: float, high: float) -> str:
    return f"{low:.2f} to {high:.2f}"
