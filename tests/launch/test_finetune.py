"""Fine-tuning the demo's teacher: the report's goals, and the whole chain with budgets of seconds."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiox_trainer.launch.finetune import Finetuning, parse
from audiox_trainer.models.audiox import SamplingConfig
from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.core.files import write_json
from audiox_trainer.trainer.evaluation.demo_report import write_finetuning_report
from tests.helpers.random_weights import random_weights, untrained_judge
from tests.helpers.run_script import run_script
from tests.helpers.small_config import ROOT, SMALL, small_json

SPEED = 64.0  # samples per second


@pytest.fixture
def demo(tmp_path: Path, scenes: Path) -> Path:
    """What the demo leaves of its teacher, with random weights."""
    folder = tmp_path / "demo"
    random_weights(folder / "weights" / "teacher", SamplingConfig("euler", 2, 2.0))
    write_json(folder / "teacher" / "config.json", small_json(scenes))
    line = {"step": 3, "seconds": 6.0, "samples_per_s": SPEED, "loss": 1.0}
    (folder / "teacher" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "scenes").symlink_to(scenes)
    return folder


def row(**values: float) -> dict[str, float]:
    return {name + end: value for name, value in values.items() for end in ("", "_low", "_high")}


@pytest.mark.parametrize(("heard", "lost", "goals"), [(0.9, 0.02, (True, True)), (0.89, 0.03, (False, False))])
def test_the_report_says_which_goals_are_met(tmp_path, heard, lost, goals):
    results = [{"prompts": 800} | row(cat_acc=0.98), {"prompts": 800} | row(cat_acc=0.98 - lost)]
    extra = {"category": "laser", "results": [{"prompts": 800} | row(heard=x) for x in (0, heard)]}
    evaluation = {"created": "now", "host": {}, "results": results, "differences": [row(cat_acc=-lost)], "extra": extra}
    write_json(tmp_path / "evaluation.json", evaluation)
    runs = {name: tmp_path / name for name in ("finetuned", "from_teacher")}
    for folder in runs.values():
        folder.mkdir()
        (folder / "metrics.jsonl").write_text('{"step": 7, "seconds": 60, "samples_per_s": 5}\n')
    write_json(tmp_path / "drums.json", {"generated": 200, "generated_accuracy": 0.94})
    out, drums = tmp_path / "report.json", {"teacher": tmp_path / "drums.json"}
    lines = write_finetuning_report(tmp_path / "evaluation.json", runs, drums, {"train": 1.0}, out)
    report = json.loads(out.read_text())
    assert tuple(report["goals"].values()) == goals and report["runs"]["finetuned"]["minutes"] == 1
    assert all(("met" in line, "missed" in line) == (goal, not goal) for line, goal in zip(lines, goals, strict=False))
    assert lines[0].startswith(
        f"laser: heard in {heard:.3f} ({heard:.3f} to {heard:.3f}) of 800 sounds, before in 0.000"
    )
    assert lines[2] == "recordings: 188 of 200 recognised after 7 steps from teacher"


def test_as_many_steps_as_the_teacher_made_in_that_time(demo, tmp_path):
    tuning = Finetuning(parse(["--demo", str(demo), "--out", str(tmp_path / "out")]))
    assert tuning.steps(minutes=0.5) == 30 * SPEED / 8 and tuning.steps(minutes=0) == 1
    command = tuning.training(Path("configs/tiny.json"), tmp_path / "run", 5, [])
    overrides = [b for a, b in pairwise(command) if a == "--set"]
    config = load_pretrain_config(ROOT / "configs/tiny.json", overrides)
    assert config.model == load_pretrain_config(ROOT / "configs/tiny.json", SMALL).model and config.training.steps == 5


def test_without_the_demo_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"weights/teacher is missing; run make demo first, or name the demo's folder"):
        Finetuning(parse(["--demo", str(tmp_path), "--out", str(tmp_path / "out")]))
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_the_whole_chain_makes_a_report(demo, tmp_path, small):
    out, recordings, rng = tmp_path / "out", tmp_path / "recordings", np.random.default_rng(0)
    untrained_judge(out / "judge", small.model.codec, "laser")
    recordings.mkdir()
    lines = []
    for i in range(40):
        name = ("low tone", "high tone")[i % 2]
        wave = np.sin((800, 6000)[i % 2] * rng.uniform(0.9, 1.1) * np.arange(8000) / 8000) * 0.5
        soundfile.write(recordings / f"{i}.wav", wave, 8000)
        lines.append(json.dumps({"audio": f"{i}.wav", "captions": [name], "category": name}) + "\n")
    (recordings / "manifest.jsonl").write_text("".join(lines))
    small_set = [word for setting in SMALL if setting.startswith("training.") for word in ("--set", setting)]
    command = ["launch/finetune.py", "--demo", demo, "--out", out, "--clips", 64, "--minutes", 0.01, "--prompts", 1]
    command += ["--recordings", recordings, "--recordings-minutes", 0.01, "--per-category", 2, *small_set]
    said = run_script(*command)
    report = json.loads((out / "report.json").read_text())
    assert report["extra"]["category"] == "laser" and len(report["extra"]["results"]) == 2
    assert set(report["runs"]) == {"finetuned", "from_teacher", "from_nothing"}
    assert set(report["recordings"]) == {"teacher", "nothing"} and report["goals"].keys() == {"heard", "others"}
    assert (out / "adapter" / "adapter_model.safetensors").exists() and (out / "report.html").exists()
    assert said.count("-- recordings: ") == 2 and "at least 0.9: " in said
    assert run_script(*command).count("skipped") == 10
