"""Adapt the demo's teacher to a sound that it has never heard: scenes with a laser, adapters trained on them and on
ordinary scenes, and both models judged on prompts with the new sound and without.

With --recordings FOLDER, whose manifest.jsonl names one category for each recording, the teacher also learns these
recordings, and so does the same model from nothing, in as many steps; a classifier says what it recognises of each.

Each step is one of the commands that a user would type, and is printed. A step whose result exists is skipped; remove
runs/finetune to start again.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from audiox_trainer.launch.demo_steps import SCRIPTS, StepRunner, launcher
from audiox_trainer.trainer.core import cli
from audiox_trainer.trainer.core.config_reader import read_json
from audiox_trainer.trainer.core.hardware import fastest_precision
from audiox_trainer.trainer.evaluation.demo_report import training_facts, write_finetuning_report
from audiox_trainer.trainer.scenes.scene import EXTRA_CATEGORIES

ORIGINS = ("teacher", "nothing")  # of a training on recordings


class Finetuning:
    """The steps of the pipeline, each with its command."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.a = arguments
        self.out: Path = arguments.out
        self.teacher: Path = arguments.demo / "weights" / "teacher"
        if not self.teacher.exists():
            raise ValueError(f"{self.teacher} is missing; run make demo first, or name the demo's folder with --demo")
        self.run = StepRunner(self.out)
        self.trained = read_json(arguments.demo / "teacher" / "config.json")  # the teacher's configuration
        self.same_model = f"model={json.dumps(self.trained['model'])}"

    def steps(self, minutes: float) -> int:
        """Training steps in this time, at the speed of the teacher's training."""
        speed = training_facts(self.a.demo / "teacher")["samples_per_s"]
        return max(1, int(60 * minutes * speed / self.trained["training"]["global_batch"]))

    def training(self, config: Path, output: Path, steps: int, overrides: list[str]) -> list[str]:
        """A training of the teacher's model."""
        same = [self.same_model, f"sampling={json.dumps(self.trained['sampling'])}"]
        own = [f"training.steps={steps}", f"training.precision={fastest_precision()}", "logging.preview_every=0"]
        options = cli.set_options([*same, *own, *overrides, *self.a.set])
        command = [*launcher(), SCRIPTS["pretrain"], "--config", str(config), "--output", str(output)]
        return [*command, *options, "--resume"]

    def adapt(self, extra: str) -> None:
        out, python = self.out, sys.executable
        shards, run, weights = out / extra, out / "run", out / "weights" / "finetuned"
        prepare = [SCRIPTS["prepare"], "scenes", "--extra", extra, "--clips", str(self.a.clips), "--music-share", "0"]
        prepare += ["--config", str(self.a.config), "--out", str(shards), "--seed", "1"]
        prepare += ["--workers", str(os.cpu_count() or 1), "--set", self.same_model]
        self.run("shards", shards, python, *prepare)
        paths = (shards / "audio", self.a.demo / "scenes" / "audio", self.a.demo / "scenes" / "music")
        overrides = [f"data.streams.{i}.path={path}" for i, path in enumerate(paths)] + [f"init.weights={self.teacher}"]
        if not weights.exists():
            self.run("train", weights, *self.training(self.a.config, run, self.steps(self.a.minutes), overrides))
        self.run("adapter", out / "adapter", python, SCRIPTS["convert"], str(run), "--out", str(out / "adapter"))
        self.run("merge", weights, python, SCRIPTS["convert"], str(run), "--out", str(weights), "--merge")
        evaluate = [SCRIPTS["evaluate"], "--weights", str(self.teacher), str(weights), "--extra", extra]
        evaluate += ["--judge", str(out / "judge"), "--prompts", str(self.a.prompts), "--tasks", "0", "--no-latency"]
        evaluate += ["--dtype", fastest_precision(), "--run", str(run)]
        evaluate += ["--out", str(out / "evaluation.json"), "--html", str(out / "report.html")]
        self.run("evaluate", out / "evaluation.json", python, *evaluate)

    def learn_recordings(self, recordings: Path) -> dict[str, Path]:
        """The classifier's report by what the training began from."""
        out, python, config = self.out / "recordings", sys.executable, str(self.a.config)
        manifest = recordings / "manifest.jsonl"
        split = [SCRIPTS["classify"], "split", "--manifest", str(manifest), "--out", str(out)]
        self.run("split recordings", out / "train.jsonl", python, *split)
        shards = [SCRIPTS["prepare"], "files", "--manifest", str(out / "train.jsonl"), "--config", config]
        shards += ["--out", str(out / "shards"), "--set", self.same_model]
        self.run("encode recordings", out / "shards", python, *shards)
        stream = [{"path": str(out / "shards" / "audio"), "tasks": {"T2A": 1}}]
        overrides = [f"data.streams={json.dumps(stream)}", "data.canonical_nodes=1", *self.a.set_recordings]
        reports, steps = {}, self.steps(self.a.recordings_minutes)
        for name in ORIGINS:
            run, weights, reports[name] = out / f"from_{name}", out / "weights" / name, out / f"from_{name}.json"
            begin = [f"init.weights={self.teacher}"] if name == "teacher" else []
            if not weights.exists():
                command = self.training(self.a.recordings_config, run, steps, [*overrides, *begin])
                self.run(f"train from {name}", weights, *command)
            convert = [SCRIPTS["convert"], str(run), "--out", str(weights)]
            self.run(f"convert {name}", weights, python, *convert)
            judge = [SCRIPTS["classify"], "judge", "--recordings", str(out), "--weights", str(weights)]
            judge += ["--per-category", str(self.a.per_category), "--out", str(reports[name])]
            self.run(f"judge {name}", reports[name], python, *judge)
        return reports

    def go(self) -> None:
        self.adapt(self.a.extra)
        recordings = self.learn_recordings(self.a.recordings) if self.a.recordings else {}
        runs = {"finetuned": self.out / "run"}
        runs |= {f"from_{name}": self.out / "recordings" / f"from_{name}" for name in recordings}
        evaluation, report = self.out / "evaluation.json", self.out / "report.json"
        for line in write_finetuning_report(evaluation, runs, recordings, self.run.seconds, report):
            print(f"-- {line}")
        print(f"-- done in {sum(self.run.seconds.values()):.0f} s: {report}, {self.out / 'report.html'}", flush=True)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--demo", type=Path, default=Path("runs/demo"), help="folder that launch/demo.py made (default: runs/demo)")
    add("--out", type=Path, default=Path("runs/finetune"), help="folder of everything (default: runs/finetune)")
    default = Path("configs/finetune_tiny.json")
    add("--config", type=Path, default=default, help=f"of the adapters (default: {default})")
    add("--minutes", type=float, default=3, help="duration of the training (default: 3)")
    add("--clips", type=int, default=4000, help="scenes with the new sound to train on (default: 4000)")
    add("--prompts", type=int, default=200, help="unseen prompts of each type, with it and without (default: 200)")
    add("--extra", choices=EXTRA_CATEGORIES, default=EXTRA_CATEGORIES[0], help="the new sound (default: %(default)s)")
    add("--recordings", type=Path, metavar="FOLDER", help="also learn the recordings of this folder's manifest.jsonl")
    config = Path("configs/tiny.json")
    add("--recordings-config", type=Path, default=config, help=f"of these trainings (default: {config})")
    add("--recordings-minutes", type=float, default=0.75, help="duration of each of the two (default: 0.75)")
    add("--per-category", type=int, default=40, help="sounds to classify per category (default: 40)")
    cli.add_overrides(parser, of="the configuration of every training")
    cli.add_overrides(parser, "--set-recordings", of="the configuration of the trainings on recordings")
    return parser.parse_args(argv)


def main() -> int:
    arguments = parse()
    return cli.run(lambda: Finetuning(arguments).go())


if __name__ == "__main__":
    sys.exit(main())
