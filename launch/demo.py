"""The complete pipeline on procedural scenes: shards, a small teacher under DeepSpeed, its four-step student, inference
weights, sound, a report.

Each step is one of the commands that a user would type, and is printed. A step whose result exists is skipped; remove
runs/demo to start again.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from audiox_trainer.launch.demo_steps import SCRIPTS, StepRunner, launcher
from audiox_trainer.trainer.checkpoint.load import step_folder
from audiox_trainer.trainer.core import cli
from audiox_trainer.trainer.core.distill_config import load_distill_config, precision_overrides
from audiox_trainer.trainer.core.hardware import fastest_precision
from audiox_trainer.trainer.core.integrity import MANIFEST
from audiox_trainer.trainer.cost.operation_budget import divide_budget
from audiox_trainer.trainer.cost.operations import training_flops
from audiox_trainer.trainer.evaluation.demo_report import draw_comparison, training_facts, write_demo_report

CALIBRATION = 60  # training steps that measure the speed
LATENCY_STEPS = ("4", "50", "100", "200")  # those of Table II
TEACHER_SAMPLINGS = ("4", "4:euler", "4:euler:1")  # the teacher with as few steps as the student
STUDENT = Path("configs/distill_tiny_levels.json")
PACE = 0.8  # operations per second in distillation, relative to those in the teacher's training


class Demo:
    """The steps of the pipeline, each with its command."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.a = arguments
        self.out: Path = arguments.out
        self.run = StepRunner(self.out)

    def training(self, output: Path, steps: int) -> list[str]:
        overrides = [f"data.streams.{i}.path={self.out}/scenes/{kind}" for i, kind in enumerate(("audio", "music"))]
        overrides += [f"training.steps={steps}", f"training.precision={fastest_precision()}"]
        overrides += [f"checkpoint.every={max(steps // 4, 1)}", *self.a.set]
        options = ["--config", str(self.a.config), "--output", str(output), *cli.set_options(overrides)]
        return [*launcher(), SCRIPTS["pretrain"], *options]

    def steps(self) -> int:
        """Training steps within the budget on this machine, from the speed of a short run."""
        trial, count = self.out / "calibration", self.a.calibration
        self.run(
            "calibrate",
            step_folder(trial, count) / MANIFEST,
            *self.training(trial, count),
            "--resume",
            "--no-self-test",
        )
        speed = training_facts(trial)["samples_per_s"]
        batch = json.loads((trial / "config.json").read_text())["training"]["global_batch"]
        return max(count, int(60 * self.a.minutes * speed / batch))

    def distillation(self, teacher: Path, weights: Path, student: Path, seed: int) -> tuple[list[str], list[str]]:
        """The commands for pairs, if the student needs any, and for a student within its minutes on this machine."""
        run, pairs = json.loads((teacher / "config.json").read_text()), self.out / "pairs"
        streams = [f"data.streams.{i}.path={s['path']}" for i, s in enumerate(run["data"]["streams"])]
        overrides = [f"model={json.dumps(run['model'])}", *streams, *precision_overrides(fastest_precision())]
        overrides += self.a.set_student
        paired = [f"warm_start.pairs={pairs}"] * ("endpoint" in load_distill_config(self.a.student, overrides).targets)
        config = load_distill_config(self.a.student, [*overrides, *paired])
        speed = training_facts(teacher)["samples_per_s"] * training_flops(config.model, config.model.text.max_tokens)
        count, updates, steps = divide_budget(config, PACE * 60 * self.a.student_minutes * speed)
        common = ["--config", str(self.a.student), "--teacher", str(weights)]
        make_pairs = [*launcher(), SCRIPTS["pairs"], *common, "--out", str(pairs), "--count", str(count)]
        distill = [*launcher(), SCRIPTS["distill"], *common, "--output", str(student), "--resume"]
        own = [*overrides, *paired, f"warm_start.updates={updates}", f"training.steps={steps}", f"training.seed={seed}"]
        return (make_pairs + cli.set_options(overrides) if paired else []), distill + cli.set_options(own)

    def go(self) -> None:
        out, python = self.out, sys.executable
        scenes, teacher, results = out / "scenes", out / "teacher", out / "weights"
        weights, report = results / "teacher", out / "evaluation.json"
        prepare = [SCRIPTS["prepare"], "scenes", "--config", str(self.a.config), "--out", str(scenes)]
        prepare += ["--clips", str(self.a.clips), "--seed", "0", "--workers", str(os.cpu_count() or 1)]
        self.run("shards", scenes, python, *prepare)
        if not weights.exists():
            started = teacher / "config.json"
            steps = json.loads(started.read_text())["training"]["steps"] if started.exists() else self.steps()
            self.run("train", weights, *self.training(teacher, steps), "--resume")
        self.run("convert", weights, python, SCRIPTS["convert"], str(teacher), "--out", str(weights))
        models = {weights: teacher}
        for seed in range(self.a.students if self.a.student_minutes else 0):
            name = f"student-{seed}" if seed else "student"
            student, target = out / name, results / name
            if not target.exists():
                pairs, distill = self.distillation(teacher, weights, student, seed)
                if pairs:
                    self.run("pairs", results / "student", *pairs)
                self.run(f"distill {name}", target, *distill)
            convert = [SCRIPTS["convert"], str(student), "--out", str(target)]
            self.run(f"convert {name}", target, python, *convert)
            models[target] = student
        evaluate = [SCRIPTS["evaluate"], "--weights", *map(str, models), "--judge", str(out / "judge")]
        evaluate += ["--prompts", str(self.a.prompts), "--tasks", str(self.a.tasks), "--dtype", fastest_precision()]
        evaluate += ["--first", self.a.first] if self.a.first else []
        evaluate += ["--also", *TEACHER_SAMPLINGS, "--latency-steps", *LATENCY_STEPS]
        evaluate += ["--out", str(report), "--html", str(out / "report.html"), "--run", *map(str, models.values())]
        self.run("evaluate", report, python, *evaluate)
        write_demo_report(
            report, {run.name: run for run in models.values()}, scenes, self.run.seconds, out / "report.json"
        )
        if self.a.picture:
            draw_comparison(weights, results / "student", self.a.picture)
        print(
            f"-- done in {sum(self.run.seconds.values()):.0f} s: {out / 'report.json'}, {out / 'report.html'}",
            flush=True,
        )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/demo"), help="folder of everything (default: runs/demo)")
    add("--config", type=Path, default=Path("configs/tiny.json"), help="of the teacher (default: configs/tiny.json)")
    add("--minutes", type=float, default=7.5, help="duration of the teacher's training (default: 7.5)")
    add("--clips", type=int, default=16000, help="procedural clips to train on (default: 16000)")
    add("--prompts", type=int, default=200, help="unseen prompts of each type (default: 200)")
    add("--tasks", type=int, default=100, help="unseen clips of each task (default: 100)")
    add("--calibration", type=int, default=CALIBRATION, help=argparse.SUPPRESS)
    add("--student", type=Path, default=STUDENT, help=f"configuration of the student (default: {STUDENT})")
    add("--student-minutes", type=float, default=6.5, help="duration of the distillation; 0: none (default: 6.5)")
    add("--students", type=int, default=1, help="number of students, with seeds 0, 1, ... (default: 1)")
    add("--first", metavar="N", help="sampler steps of the teacher in the evaluation (default: those of its weights)")
    add("--picture", type=Path, metavar="PNG", help="also draw spectrograms of true scenes, teacher and student")
    cli.add_overrides(parser, of="the teacher's configuration")
    cli.add_overrides(parser, "--set-student", of="the student's configuration")
    return parser.parse_args(argv)


def main() -> int:
    return cli.run(Demo(parse()).go)


if __name__ == "__main__":
    sys.exit(main())
