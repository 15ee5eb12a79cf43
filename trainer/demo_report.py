"""The demo's `report.json`: what was run, what the judge says, with the judge's own scores and chance beside it."""

import json
from pathlib import Path
from typing import Any

from .config import read_json
from .files import write_json

METRICS = ("cat_acc", "cnt_acc", "ord_acc", "ts_acc")


def compose(
    evaluation: dict[str, Any], teacher: Path, scenes: Path, seconds: dict[str, float], out: Path
) -> dict[str, Any]:
    """Write `out` from an evaluation of the teacher's weights, the run's folder and the shards; returns what it wrote.

    `seconds` are the durations of the demo's steps by name.
    """
    model, result = evaluation["models"][0], evaluation["results"][0]
    report = {
        "made": evaluation["made"],
        "host": evaluation["host"],
        "data": {
            folder.name: read_json(folder / "features.json") for folder in sorted(scenes.iterdir()) if folder.is_dir()
        },
        "judge": {name: evaluation["references"][0][name] for name in METRICS},
        "judge_through_codec": {name: evaluation["references"][1][name] for name in METRICS},
        "chance": result["chance"],
        "teacher": {
            "parameters": model["parameters"],
            **training_facts(teacher),
            "results": evaluation["results"],
            "tasks": evaluation["tasks"],
        },
        "efficiency": evaluation["efficiency"],
        "seconds": seconds,
    }
    write_json(out, report)
    return report


def training_facts(run: Path) -> dict[str, float]:
    """Steps, minutes and throughput of a run, from its metrics.jsonl: the minutes include compilation, the throughput
    is the median over the logged intervals."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = sorted(line["samples_per_s"] for line in lines)
    return {
        "steps": lines[-1]["step"],
        "minutes": round(lines[-1]["seconds"] / 60, 3),
        "samples_per_s": speeds[len(speeds) // 2],
        "loss": lines[-1]["loss"],
    }
