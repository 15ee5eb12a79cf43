"""The paper's ablations at small scale (Tables V, VI) and some more: equal budgets, several seeds, a table per group.

examples:
  python launch/ablate.py --teacher weights/tiny --out runs/ablations
  python launch/ablate.py --teacher weights/tiny --out runs/ablations --only "on top" cadence

The same command resumes after an interruption. The budget is the operations of --samples training samples of the
teacher, or of --samples-on-top for a run on top of the base student; a variant with more expensive updates takes fewer.
The best variant (bold) is chosen on one set of prompts, and all are reported on another.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from audiox_trainer.trainer.core import cli

if TYPE_CHECKING:
    from audiox_trainer.trainer.ablations.ablations import Ablations, Variant

SCRIPTS = Path(__file__).parent
STUDENT = Path("configs/distill_tiny_levels.json")
TEACHER_STEPS = 50


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--teacher", required=True, type=Path, help="weights folder made by launch/convert.py")
    parser.add_argument(
        "--out", required=True, type=Path, help="output folder; resumes one made with the same settings"
    )
    parser.add_argument("--config", type=Path, default=STUDENT, help=f"the base distillation (default: {STUDENT})")
    parser.add_argument("--pretraining", type=Path, default=Path("configs/tiny.json"), help="the base pretraining")
    parser.add_argument("--judge", type=Path, default=Path("weights/judge"), help="(default: weights/judge)")
    parser.add_argument("--samples", type=int, default=20000, help="the budget of a run (default: 20000)")
    on_top = "the budget of a run on top of the base student (default: 8000)"
    parser.add_argument("--samples-on-top", type=int, default=8000, help=on_top)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="(default: 0 1)")
    parser.add_argument("--prompts", type=int, default=100, help="prompts of each type (default: 100)")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--only", nargs="+", default=[], metavar="GROUP", help="only these groups")
    cli.add_overrides(parser, of="all configurations")
    return parser.parse_args(argv)


def run_script(script: str, arguments: Sequence[str], log: Path) -> None:
    """Run one of the scripts, its output appended to a file. Raises ValueError if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        done = subprocess.run([sys.executable, str(SCRIPTS / script), *arguments], stdout=file, stderr=file)
    if done.returncode:
        raise ValueError(f"{script} failed with exit code {done.returncode}: see {log}")


def make_pairs(ablations: "Ablations", variant: "Variant") -> None:
    """Make or complete the pairs that a variant regresses on, if it does; its runs of all seeds share them."""
    if pairs := ablations.pairs(variant):
        settings, (count, _) = ablations.settings, ablations.budget(variant)
        common = ["--config", str(settings.student), "--teacher", str(settings.teacher)]
        sets = cli.set_options(ablations.overrides(variant, seed=0))
        run_script("pairs.py", [*common, "--out", pairs, "--count", f"{count}", *sets], Path(f"{pairs}.txt"))


def train(ablations: "Ablations", variant: "Variant", seed: int) -> str:
    """Train and convert a run, unless that is done; returns its name."""
    from audiox_trainer.trainer.ablations.ablations import run_name

    name, settings = run_name(variant, seed), ablations.settings
    run, weights = settings.out / name, settings.out / "weights" / name
    if ablations.is_done(variant, seed):
        return name
    script, own = "distill.py", ["--config", str(settings.student), "--teacher", str(settings.teacher)]
    if variant.stage == "pretraining":
        script, own = "pretrain.py", ["--config", str(settings.pretraining)]
    sets, log = cli.set_options(ablations.overrides(variant, seed)), run / "output.txt"
    run_script(script, [*own, "--output", str(run), "--resume", *sets], log)
    merge = ["--merge"] * ablations.has_adapters(variant)
    run_script("convert.py", [str(run), "--out", str(weights), *merge], log)
    return name


def judge(ablations: "Ablations", name: str, weights: Path, *options: str) -> None:
    """Judge weights on both sets of prompts, unless their scores exist."""
    from audiox_trainer.trainer.ablations.ablations import TEST, VALIDATION
    from audiox_trainer.trainer.core.hardware import fastest_precision

    settings = ablations.settings
    for prompts in (VALIDATION, TEST):
        if f"{prompts}" in ablations.results.get(name, {}):
            continue
        report = settings.out / name / f"report-{prompts}.json"
        judging = ["--weights", str(weights), *options, "--judge", str(settings.judge), "--tasks", "0", "--no-latency"]
        judging += ["--prompts", f"{settings.prompts}", "--seed", f"{prompts}", "--dtype", fastest_precision()]
        run_script("evaluate.py", [*judging, "--out", str(report)], settings.out / name / "output.txt")
        ablations.add(name, prompts, json.loads(report.read_text()))


def run(a: argparse.Namespace) -> None:
    """Train and convert the missing runs, some at a time, and judge each when it is ready."""
    from audiox_trainer.trainer.ablations.ablations import TEACHER, Ablations, AblationSettings

    paths, budgets = (a.out, a.config, a.pretraining, a.teacher, a.judge), (a.samples, a.samples_on_top)
    ablations = Ablations(AblationSettings(*paths, *budgets, a.seeds, a.prompts, tuple(a.set)), a.only)
    runs = ablations.runs()
    if ablations.students:
        judge(ablations, TEACHER, a.teacher, "--steps", f"{TEACHER_STEPS}")
    for variant in dict.fromkeys(variant for variant, seed in runs if not ablations.is_done(variant, seed)):
        make_pairs(ablations, variant)
    with ThreadPoolExecutor(a.parallel) as pool, tqdm(total=len(runs), unit=" runs", desc="ablations") as bar:
        for on_top in (False, True):  # the others' weights come first
            some = [run for run in runs if run[0].on_top == on_top]
            for name in pool.map(lambda run: train(ablations, *run), some):
                judge(ablations, name, a.out / "weights" / name)
                bar.update()
    print(ablations.write_tables().read_text())


def main() -> int:
    arguments = parse()
    return cli.run(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
