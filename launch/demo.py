"""The whole way on procedural scenes: shards, a small teacher under DeepSpeed, its four-step student, inference
weights, sound, a report.

Each step is one of the commands that a user would type, and is printed. A step whose result exists is not done again;
remove runs/demo to begin anew.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from audiox_trainer.trainer.checkpoint.load import step_folder
from audiox_trainer.trainer.core import cli as command
from audiox_trainer.trainer.core.distill_config import load_distill_config, precision_overrides
from audiox_trainer.trainer.core.hardware import fastest_precision, free_port
from audiox_trainer.trainer.core.integrity import MANIFEST
from audiox_trainer.trainer.cost.distill_operations import divided
from audiox_trainer.trainer.cost.operations import training_flops
from audiox_trainer.trainer.evaluation.demo_report import compose, training_facts

CALIBRATION = 60  # training steps that tell how many fit into the budget
STEPS, WAYS = ("4", "50", "100", "200"), ("4", "4:euler", "4:euler:1")  # those of Table II; the teacher in few
PACE = 0.8  # of the operations a second that the teacher's training reached: what its distillation does


class Demo:
    """Runs the commands, keeps the clock."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.a = arguments
        self.out: Path = arguments.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.clock = self.out / "seconds.json"  # of a demo in several goes
        self.times: dict[str, float] = json.loads(self.clock.read_text()) if self.clock.exists() else {}

    def run(self, name: str, done: Path, *command: str) -> None:
        if done.exists():
            print(f"-- {name}: there already ({done})", flush=True)
            return
        print(f"-- {name}\n   {' '.join(command)}", flush=True)
        begin = time.perf_counter()
        # One cache of compiled code for the calibration and the training proper.
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(self.out.absolute() / "compiled")}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        if code := subprocess.call(command, env=environment):
            raise ValueError(f"the command above failed with exit code {code}")
        self.times[name] = time.perf_counter() - begin
        self.clock.write_text(json.dumps(self.times))
        print(f"   {self.times[name]:.0f} s", flush=True)

    def training(self, output: Path, steps: int) -> list[str]:
        overrides = [f"data.streams.{i}.path={self.out}/scenes/{kind}" for i, kind in enumerate(("audio", "music"))]
        overrides += [f"training.steps={steps}", f"training.precision={fastest_precision()}"]
        overrides += [f"checkpoint.every={max(steps // 4, 1)}", *self.a.set]
        settled = ["--config", str(self.a.config), "--output", str(output), *command.set_options(overrides)]
        return [*self.launcher(), "launch/pretrain.py", *settled]

    def launcher(self) -> list[str]:
        """On a CPU two ranks: on tensors this small two cores do more apart, and meet once a step."""
        if torch.cuda.is_available() or (os.cpu_count() or 1) < 2:
            return ["deepspeed"]
        return ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port())]

    def steps(self) -> int:
        """How many steps fit into the budget on this machine, by the speed of a short run."""
        trial, count = self.out / "calibration", self.a.calibration
        done = step_folder(trial, count) / MANIFEST
        self.run("calibrate", done, *self.training(trial, count), "--resume")
        speed = training_facts(trial)["samples_per_s"]
        batch = json.loads((trial / "config.json").read_text())["training"]["global_batch"]
        return max(count, int(60 * self.a.minutes * speed / batch))

    def distillation(self, teacher: Path, weights: Path, student: Path, seed: int) -> tuple[list[str], list[str]]:
        """The commands that make the pairs and a student, as long as the student's minutes allow on this machine."""
        run, pairs = json.loads((teacher / "config.json").read_text()), self.out / "pairs"
        streams = [f"data.streams.{i}.path={s['path']}" for i, s in enumerate(run["data"]["streams"])]
        overrides = [f"model={json.dumps(run['model'])}", *streams, *precision_overrides(fastest_precision())]
        overrides += self.a.set_student
        config = load_distill_config(self.a.student, [*overrides, f"warm_start.pairs={pairs}"])
        speed = training_facts(teacher)["samples_per_s"] * training_flops(config.model, config.model.text.max_tokens)
        count, updates, steps = divided(config, PACE * 60 * self.a.student_minutes * speed)
        common = ["--config", str(self.a.student), "--teacher", str(weights)]
        made = [*self.launcher(), "launch/pairs.py", *common, "--out", str(pairs), "--count", str(count)]
        distilled = [*self.launcher(), "launch/distill.py", *common, "--output", str(student), "--resume"]
        settled = [f"warm_start.pairs={pairs}", f"warm_start.updates={updates}", f"training.steps={steps}"]
        settled.append(f"training.seed={seed}")
        return made + command.set_options(overrides), distilled + command.set_options([*overrides, *settled])

    def go(self) -> None:
        out, python = self.out, sys.executable
        scenes, teacher, exports = out / "scenes", out / "teacher", out / "weights"
        weights, report = exports / "teacher", out / "evaluation.json"
        prepare = ["launch/prepare.py", "scenes", "--config", str(self.a.config), "--out", str(scenes)]
        prepare += ["--clips", str(self.a.clips), "--seed", "0", "--workers", str(os.cpu_count() or 1)]
        self.run("shards", scenes, python, *prepare)
        if not weights.exists():
            begun = teacher / "config.json"
            steps = json.loads(begun.read_text())["training"]["steps"] if begun.exists() else self.steps()
            self.run("train", weights, *self.training(teacher, steps), "--resume")
        self.run("export", weights, python, "launch/convert.py", str(teacher), "--out", str(weights))
        models = {weights: teacher}
        for seed in range(self.a.students if self.a.student_minutes else 0):
            name = f"student-{seed}" if seed else "student"
            student, fast = out / name, exports / name
            if not fast.exists():
                pairs, distil = self.distillation(teacher, weights, student, seed)
                self.run("pairs", exports / "student", *pairs)
                self.run(f"distil {name}", fast, *distil)
            self.run(f"export {name}", fast, python, "launch/convert.py", str(student), "--out", str(fast))
            models[fast] = student
        evaluate = ["launch/evaluate.py", "--weights", *map(str, models), "--judge", str(out / "judge")]
        evaluate += ["--prompts", str(self.a.prompts), "--tasks", str(self.a.tasks), "--dtype", fastest_precision()]
        evaluate += [*(["--first", self.a.first] if self.a.first else []), "--also", *WAYS, "--latency-steps", *STEPS]
        evaluate += ["--out", str(report), "--html", str(out / "report.html"), "--run", *map(str, models.values())]
        self.run("evaluate", report, python, *evaluate)
        runs = {run.name: run for run in models.values()}
        compose(json.loads(report.read_text()), runs, scenes, self.times, out / "report.json")
        print(f"-- done in {sum(self.times.values()):.0f} s: {out / 'report.json'}, {out / 'report.html'}", flush=True)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of everything (default: runs/demo)")
    parser.add_argument("--config", type=Path, default=Path("configs/tiny.json"))
    parser.add_argument("--minutes", type=float, default=7.5, help="for the teacher's training (default: 7.5)")
    parser.add_argument("--clips", type=int, default=16000, help="procedural clips to train on (default: 16000)")
    parser.add_argument("--prompts", type=int, default=200, help="unseen prompts of each type (default: 200)")
    parser.add_argument("--tasks", type=int, default=100, help="clips a task is judged on (default: 100)")
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help=argparse.SUPPRESS)
    parser.add_argument("--student", type=Path, default=Path("configs/distill_tiny.json"), help="its configuration")
    parser.add_argument("--student-minutes", type=float, default=6.5, help="to distil it; 0 makes none (default: 6.5)")
    parser.add_argument("--students", type=int, default=1, help="how many, of seeds 0, 1, ... (default: 1)")
    parser.add_argument("--first", metavar="N", help="steps of the teacher when judged (default: what it says)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override the teacher's")
    parser.add_argument("--set-student", action="append", default=[], metavar="KEY=VALUE", help="and the student's")
    return parser.parse_args(argv)


def main() -> int:
    return command.run(Demo(parse()).go)


if __name__ == "__main__":
    sys.exit(main())
