"""The `report.json` of the demo and of its fine-tuning, with the runs and the models' scores, and the demo's picture of
spectrograms."""

import json
from pathlib import Path
from typing import Any

from ...models.sampler import nfe, override_sampling
from ..core.config_reader import read_json
from ..core.files import write_json
from ..generation.clip_request import ClipRequest
from ..generation.generator import Generator
from ..pages.charts import save_spectrograms
from ..pages.embedded_media import Rendition, SoundComparison
from ..training.logs import LOSSES
from .judge_training import render_scenes
from .report import ACCURACIES
from .t2a_prompts import draw_prompts

PICTURED_PROMPTS = (2, 7, 11, 15)  # of five per type: three categories, three repetitions, three in order, one in time
TEACHER_STEPS = 50  # with guidance, 100 evaluations
HEARD, LOST = 0.9, 0.02  # goals of fine-tuning: how often a new sound is heard, and what Cat-acc of the others may lose


def write_demo_report(
    evaluation_report: Path, runs: dict[str, Path], scenes: Path, seconds: dict[str, float], out: Path
) -> None:
    """Write `out` from the evaluation of weights named "teacher" and perhaps "student", the folders of their runs by
    these names, the shards, and the durations of the demo's steps by name."""
    evaluation = read_json(evaluation_report)
    folders = sorted(folder for folder in scenes.iterdir() if folder.is_dir())
    true, coded = ({key: row[key] for key, _ in ACCURACIES} for row in evaluation["references"])
    report = {
        "created": evaluation["created"],
        "host": evaluation["host"],
        "data": {folder.name: read_json(folder / "features.json") for folder in folders},
        "judge": true,
        "judge_through_codec": coded,
        "chance": evaluation["results"][0]["chance"],
        **{name: _model(evaluation, name, run) for name, run in runs.items()},
        "differences": evaluation["differences"],
        "efficiency": evaluation["efficiency"],
        "seconds": seconds,
    }
    write_json(out, report)


def _model(evaluation: dict[str, Any], name: str, run: Path) -> dict[str, Any]:
    """The facts of a training, and the results at each number of steps."""
    models = {model["model"]: model for model in evaluation["models"]}
    return {
        "parameters": models[name]["parameters"],
        **training_facts(run),
        "results": [row for row in evaluation["results"] if models[row["model"]]["weights"] == name],
        "tasks": [row for row in evaluation["tasks"] if row["model"] == name],
    }


def training_facts(run: Path) -> dict[str, float]:
    """Steps (updates of all roles), minutes, throughput and last losses of a run, from its metrics.jsonl.

    The minutes include compilation; the throughput is the median over the logged intervals. A line has only the losses
    of the roles that were updated since the line before.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = sorted(line["samples_per_s"] for line in lines if "samples_per_s" in line)  # not where it went back
    return {
        "steps": lines[-1]["step"],
        "minutes": round(lines[-1]["seconds"] / 60, 3),
        "samples_per_s": speeds[len(speeds) // 2],
        **{name: line[name] for line in lines for name in LOSSES if name in line},
    }


def write_finetuning_report(
    evaluation_report: Path, runs: dict[str, Path], recordings: dict[str, Path], seconds: dict[str, float], out: Path
) -> list[str]:
    """Write `out` from the evaluation of a teacher and of its fine-tuned weights with an extra category, the runs by
    name, the classifier's reports on recordings by what the training began from, and the durations of the steps.

    Returns what it says in a few lines.
    """
    evaluation, classified = read_json(evaluation_report), {name: read_json(path) for name, path in recordings.items()}
    extra, (before, after) = evaluation["extra"], evaluation["results"]
    (first, second), (difference,) = extra["results"], evaluation["differences"]
    goals = {"heard": second["heard"] >= HEARD, "others": difference["cat_acc"] >= -LOST}
    facts = {name: training_facts(run) for name, run in runs.items()}
    report = {"created": evaluation["created"], "host": evaluation["host"], "runs": facts, "goals": goals}
    report["others"] = {"before": before, "after": after, "difference": difference}
    write_json(out, report | {"extra": extra, "recordings": classified, "seconds": seconds})
    lines = [
        f"{extra['category']}: heard in {_interval(second, 'heard')} of {second['prompts']} sounds, before in "
        f"{_interval(first, 'heard')}; at least {HEARD}: {_met(goals['heard'])}",
        f"other sounds: Cat-acc {_interval(after, 'cat_acc')}, before {_interval(before, 'cat_acc')}, difference "
        f"{_interval(difference, 'cat_acc')}; loses at most {LOST}: {_met(goals['others'])}",
    ]
    for name, found in classified.items():
        right = round(found["generated_accuracy"] * found["generated"])
        steps = facts[f"from_{name}"]["steps"]
        lines.append(f"recordings: {right} of {found['generated']} recognised after {steps} steps from {name}")
    return lines


def _interval(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})"


def _met(goal: bool) -> str:
    return "met" if goal else "missed"


def draw_comparison(teacher: Path, student: Path, out: Path) -> None:
    """A picture of one prompt per type: the true scene, the teacher's sound in 100 evaluations, and the student's in
    the steps of its weights, from the same noise. Without a student, the teacher's alone."""
    every = draw_prompts(5, seed=0)
    prompts = [every[i] for i in PICTURED_PROMPTS]
    renditions = [[Rendition("true scene", wave) for wave in render_scenes([prompt.scene for prompt in prompts])]]
    rate = 0
    for name, weights, steps in (("teacher", teacher, TEACHER_STEPS), ("student", student, None)):
        if not weights.exists():
            continue
        generator = Generator(weights)
        rate, sampling = generator.sample_rate, override_sampling(generator.sampling, steps, None)
        latents = generator.latents(ClipRequest([prompt.text for prompt in prompts]), 0, sampling)
        title = f"{name}, {nfe(sampling)} evaluations"
        renditions.append([Rendition(title, wave) for wave in generator.waves(latents)])
    rows = zip(prompts, zip(*renditions, strict=True), strict=True)
    save_spectrograms([SoundComparison(prompt.kind, prompt.text, row, rate) for prompt, row in rows], out)
