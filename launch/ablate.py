"""The paper's ablations at small scale (Tables V, VI) and some more: equal budgets, several seeds, a table per group.

examples:
  python launch/ablate.py --teacher weights/tiny --pairs data/pairs --out runs/ablations
  python launch/ablate.py --teacher weights/tiny --pairs data/pairs --out runs/ablations --only base "steps drawn"

The same command resumes after an interruption. All runs share the pairs, made by launch/pairs.py. The budget is the
operations of --samples training samples of the teacher; a variant with more expensive steps takes fewer. The best
variant (bold) is chosen on one set of prompts, and all are reported on another.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from audiox_trainer.trainer.core import cli

if TYPE_CHECKING:
    from audiox_trainer.trainer.evaluation.ablations import Ablations, Variant

SCRIPTS = Path(__file__).parent


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--teacher", required=True, type=Path, help="weights folder made by launch/convert.py")
    parser.add_argument("--pairs", required=True, type=Path, help="folder made by launch/pairs.py with this teacher")
    parser.add_argument(
        "--out", required=True, type=Path, help="output folder; resumes one made with the same settings"
    )
    parser.add_argument("--config", type=Path, default=Path("configs/distill_tiny.json"), help="the base distillation")
    parser.add_argument("--pretraining", type=Path, default=Path("configs/tiny.json"), help="the base pretraining")
    parser.add_argument("--judge", type=Path, default=Path("weights/judge"), help="(default: weights/judge)")
    parser.add_argument("--samples", type=int, default=20000, help="the budget of a run (default: 20000)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="(default: 0 1)")
    parser.add_argument("--prompts", type=int, default=100, help="prompts of each type (default: 100)")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--only", nargs="+", default=[], metavar="GROUP", help="only these groups")
    cli.add_overrides(parser, of="all configurations")
    return parser.parse_args(argv)


def train(ablations: "Ablations", variant: "Variant", seed: int) -> str:
    """Train and convert a run, unless it is judged; returns its name."""
    from audiox_trainer.trainer.evaluation.ablations import folder_name

    name, settings = folder_name(variant, seed), ablations.settings
    run, weights = settings.out / name, settings.out / "weights" / name
    if weights.exists() or ablations.is_judged(name):
        return name
    command = [str(SCRIPTS / "pretrain.py"), "--config", str(settings.pretraining)]
    if not variant.teacher:
        command = [str(SCRIPTS / "distill.py"), "--config", str(settings.student), "--teacher", str(settings.teacher)]
    sets = cli.set_options(ablations.overrides(variant, seed))
    run.mkdir(parents=True, exist_ok=True)
    with (run / "output.txt").open("a") as log:
        for line in (
            [*command, "--output", str(run), "--resume", *sets],
            [str(SCRIPTS / "convert.py"), str(run), "--out", str(weights)],
        ):
            done = subprocess.run([sys.executable, *line], stdout=log, stderr=subprocess.STDOUT)
            if done.returncode:
                raise ValueError(f"{name} failed with exit code {done.returncode}: see {run / 'output.txt'}")
    return name


def judge(ablations: "Ablations", name: str) -> None:
    """Judge the weights of a run on both sets of prompts, unless their scores exist."""
    from audiox_trainer.trainer.core.hardware import fastest_precision
    from audiox_trainer.trainer.evaluation.ablations import TEST, VALIDATION

    settings = ablations.settings
    for prompts in (VALIDATION, TEST):
        if f"{prompts}" in ablations.results.get(name, {}):
            continue
        report = settings.out / name / f"report-{prompts}.json"
        command = [sys.executable, str(SCRIPTS / "evaluate.py"), "--weights", str(settings.out / "weights" / name)]
        command += ["--judge", str(settings.judge), "--prompts", str(settings.prompts), "--tasks", "0"]
        command += ["--dtype", fastest_precision(), "--no-latency", "--seed", str(prompts), "--out", str(report)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{name} could not be judged: {done.stderr.splitlines()[-1] if done.stderr else ''}")
        ablations.add(name, prompts, json.loads(report.read_text()))


def run(a: argparse.Namespace) -> None:
    """Train and convert the missing runs, some at a time, and judge each when it is ready."""
    from audiox_trainer.trainer.evaluation.ablations import Ablations, AblationSettings

    paths = (a.out, a.config, a.pretraining, a.teacher, a.pairs, a.judge)
    ablations = Ablations(AblationSettings(*paths, a.samples, a.seeds, a.prompts, tuple(a.set)), a.only)
    runs = ablations.runs()
    with ThreadPoolExecutor(a.parallel) as pool, tqdm(total=len(runs), unit=" runs", desc="ablations") as bar:
        for name in pool.map(lambda run: train(ablations, *run), runs):
            judge(ablations, name)
            bar.update()
    print(ablations.write_tables().read_text())


def main() -> int:
    arguments = parse()
    return cli.run(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
