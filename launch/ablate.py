"""The paper's ablations in small (Tables V and VI) and some of our own: equal budgets, several seeds, a table a group.

examples:
  python launch/ablate.py --teacher weights/tiny --pairs data/pairs --out runs/ablations
  python launch/ablate.py --teacher weights/tiny --pairs data/pairs --out runs/ablations --only base "steps drawn"

Run it again after a stop: it goes on. The pairs are those of launch/pairs.py, the same for all runs. The budget is the
operations of so many training samples of the teacher; a variant that costs more a step takes fewer. Variants are chosen
on one set of prompts (bold) and reported on another.
"""

import argparse
import sys
from pathlib import Path

from audiox_turbo.trainer import command


def parse() -> argparse.Namespace:
    parser = command.parser(__doc__)
    parser.add_argument("--teacher", required=True, type=Path, help="weights folder made by launch/convert.py")
    parser.add_argument("--pairs", required=True, type=Path, help="folder of launch/pairs.py, made with this teacher")
    parser.add_argument("--out", required=True, type=Path, help="folder of everything; one begun is gone on with")
    parser.add_argument("--config", type=Path, default=Path("configs/distill_tiny.json"), help="the base distillation")
    parser.add_argument("--pretraining", type=Path, default=Path("configs/tiny.json"), help="the base pretraining")
    parser.add_argument("--judge", type=Path, default=Path("weights/judge"), help="(default: weights/judge)")
    parser.add_argument("--samples", type=int, default=20000, help="the budget of a run (default: 20000)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="(default: 0 1)")
    parser.add_argument("--prompts", type=int, default=100, help="of each type (default: 100)")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--only", nargs="+", default=[], metavar="GROUP", help="these groups alone")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a value of every run")
    return parser.parse_args()


def run(a: argparse.Namespace) -> None:
    from audiox_turbo.trainer.ablations import Ablations, Plan

    plan = Plan(
        a.out, a.config, a.pretraining, a.teacher, a.pairs, a.judge, a.samples, a.seeds, a.prompts, tuple(a.set)
    )
    Ablations(plan, a.only).run(a.parallel)
    print((a.out / "table.md").read_text())


def main() -> int:
    arguments = parse()
    return command.exit_code(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
