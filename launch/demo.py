"""The whole way on procedural scenes: shards, a small teacher under DeepSpeed, inference weights, sound, a report.

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

from audiox_turbo.trainer import command
from audiox_turbo.trainer.demo_report import compose
from audiox_turbo.trainer.hardware import free_port

CALIBRATION = 60  # training steps that tell how many fit into the budget


class Demo:
    """Runs the commands, keeps the clock."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.a = arguments
        self.out: Path = arguments.out
        # Kept beside the results, so that a demo in several goes adds up to the whole.
        self.clock = self.out / "seconds.json"
        self.times: dict[str, float] = json.loads(self.clock.read_text()) if self.clock.exists() else {}

    def run(self, name: str, done: Path, *command: str) -> None:
        if done.exists():
            print(f"-- {name}: there already ({done})", flush=True)
            return
        print(f"-- {name}\n   {' '.join(command)}", flush=True)
        begin = time.perf_counter()
        # One cache of compiled code for the calibration and the training proper.
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(self.out.absolute() / "compiled")}
        bin_folder = Path(sys.executable).parent
        environment["PATH"] = f"{bin_folder}{os.pathsep}{environment['PATH']}"
        subprocess.run(command, check=True, env=environment)
        self.times[name] = time.perf_counter() - begin
        self.clock.write_text(json.dumps(self.times))
        print(f"   {self.times[name]:.0f} s", flush=True)

    def training(self, output: Path, steps: int) -> list[str]:
        scenes = self.out / "scenes"
        overrides = [f"data.streams.0.path={scenes}/audio", f"data.streams.1.path={scenes}/music"]
        overrides += [f"training.steps={steps}", f"checkpoint.every={max(steps // 4, 1)}", *self.a.set]
        sets = [word for override in overrides for word in ("--set", override)]
        return [*self.launcher(), "launch/pretrain.py", "--config", str(self.a.config), "--output", str(output), *sets]

    def launcher(self) -> list[str]:
        """On a CPU two ranks: on tensors this small two cores do more apart, and meet once a step."""
        if torch.cuda.is_available() or (os.cpu_count() or 1) < 2:
            return ["deepspeed"]
        return ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port())]

    def steps(self) -> int:
        """How many steps fit into the budget on this machine, by the speed of a short run."""
        trial = self.out / "calibration"
        self.run("calibrate", trial / "metrics.jsonl", *self.training(trial, self.a.calibration))
        lines = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
        late = lines[len(lines) // 2 :]  # the first steps compile
        speed = len(late) / sum(1 / line["samples_per_s"] for line in late)
        batch = json.loads((trial / "config.json").read_text())["training"]["global_batch"]
        return max(self.a.calibration, int(60 * self.a.minutes * speed / batch))

    def go(self) -> None:
        out, python = self.out, sys.executable
        out.mkdir(parents=True, exist_ok=True)
        scenes, teacher, weights = out / "scenes", out / "teacher", out / "weights" / "teacher"
        report = out / "evaluation.json"
        prepare = ["launch/prepare.py", "scenes", "--config", str(self.a.config), "--out", str(scenes)]
        workers = ["--workers", str(os.cpu_count() or 1)]
        self.run("shards", scenes, python, *prepare, "--clips", str(self.a.clips), "--seed", "0", *workers)
        if not weights.exists():
            steps = self.steps() if not (teacher / "config.json").exists() else self._configured(teacher)
            self.run("train", weights, *self.training(teacher, steps), "--resume")
        self.run("export", weights, python, "launch/convert.py", str(teacher), "--out", str(weights))
        evaluate = ["launch/evaluate.py", "--weights", str(weights), "--judge", str(out / "judge")]
        evaluate += ["--prompts", str(self.a.prompts), "--tasks", str(self.a.tasks)]
        evaluate += ["--steps", str(self.a.sampling_steps), "--dtype", "bf16", "--out", str(report)]
        page = ["--html", str(out / "report.html"), "--run", str(teacher)]
        self.run("evaluate", report, python, *evaluate, *page)
        compose(json.loads(report.read_text()), teacher, scenes, self.times, out / "report.json")
        print(f"-- done in {sum(self.times.values()):.0f} s: {out / 'report.json'}, {out / 'report.html'}", flush=True)

    def _configured(self, teacher: Path) -> int:
        return int(json.loads((teacher / "config.json").read_text())["training"]["steps"])


def main() -> int:
    parser = command.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of everything (default: runs/demo)")
    parser.add_argument("--config", type=Path, default=Path("configs/tiny.json"))
    parser.add_argument("--minutes", type=float, default=6.5, help="for the teacher's training (default: 6.5)")
    parser.add_argument("--clips", type=int, default=16000, help="procedural clips to train on (default: 16000)")
    parser.add_argument("--prompts", type=int, default=100, help="unseen prompts of each type (default: 100)")
    parser.add_argument("--tasks", type=int, default=100, help="clips a task is judged on (default: 100)")
    parser.add_argument("--sampling-steps", type=int, default=25, help="steps of the teacher's sampler (default: 25)")
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help=argparse.SUPPRESS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a training value")
    demo = Demo(parser.parse_args())
    try:
        demo.go()
    except subprocess.CalledProcessError as error:
        print(f"error: the command above failed with exit code {error.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
