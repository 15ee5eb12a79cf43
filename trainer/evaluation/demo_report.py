"""The demo's `report.json`: what was run, what the judge says, with the judge's own scores and chance beside it."""

import json
from pathlib import Path
from typing import Any

from ..core.config_reader import read_json
from ..core.files import write_json
from ..pages.charts import LOSSES

METRICS = ("cat_acc", "cnt_acc", "ord_acc", "ts_acc")


def compose(
    evaluation: dict[str, Any], runs: dict[str, Path], scenes: Path, seconds: dict[str, float], out: Path
) -> dict[str, Any]:
    """Write `out` from an evaluation of weights named "teacher" and perhaps "student", the folders of their runs by
    these names, and the shards; returns what it wrote.

    `seconds` are the durations of the demo's steps by name.
    """
    report = {
        "made": evaluation["made"],
        "host": evaluation["host"],
        "data": {
            folder.name: read_json(folder / "features.json") for folder in sorted(scenes.iterdir()) if folder.is_dir()
        },
        "judge": {name: evaluation["references"][0][name] for name in METRICS},
        "judge_through_codec": {name: evaluation["references"][1][name] for name in METRICS},
        "chance": evaluation["results"][0]["chance"],
        **{name: _model(evaluation, name, run) for name, run in runs.items()},
        "differences": evaluation["differences"],
        "efficiency": evaluation["efficiency"],
        "seconds": seconds,
    }
    write_json(out, report)
    return report


def _model(evaluation: dict[str, Any], name: str, run: Path) -> dict[str, Any]:
    """What was trained, how, and how it fared at each number of steps."""
    models = {model["model"]: model for model in evaluation["models"]}
    return {
        "parameters": models[name]["parameters"],
        **training_facts(run),
        "results": [row for row in evaluation["results"] if models[row["model"]]["weights"] == name],
        "tasks": [row for row in evaluation["tasks"] if row["model"] == name],
    }


def training_facts(run: Path) -> dict[str, float]:
    """Steps (updates of all roles), minutes, throughput and last losses of a run, from its metrics.jsonl: the minutes
    include compilation, the throughput is the median over the logged intervals, and a line has those losses alone whose
    turn it was since the one before."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = sorted(line["samples_per_s"] for line in lines)
    return {
        "steps": lines[-1]["step"],
        "minutes": round(lines[-1]["seconds"] / 60, 3),
        "samples_per_s": speeds[len(speeds) // 2],
        **{name: line[name] for line in lines for name in LOSSES if name in line},
    }
