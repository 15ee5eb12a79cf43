"""Solve a teacher's guided ODE once, for the warm start of its students: pairs of noise and endpoint, in shards.

examples:
  deepspeed launch/pairs.py --config configs/distill_tiny.json --teacher weights/tiny --out data/pairs --count 6000
  torchrun --nproc-per-node 8 launch/pairs.py --config configs/distill_2p7b.json --teacher weights/2p7b --out data/pairs
      --set sampling.sampler=euler --count 100000

The configuration names the data, the guidance (`distillation.teacher_guidance`) and the steps (`warm_start.ode_steps`).
The same command resumes after a stop. Then distil with --set warm_start.pairs=data/pairs --set warm_start.updates=400
"""

import argparse
import os
import sys
from pathlib import Path

from audiox_trainer.trainer.core import cli
from audiox_trainer.trainer.core.distill_config import load_distill_config


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    cli.add_config(parser, "the distillation's JSON file, see configs/distill_*.json")
    cli.add_teacher(parser)
    parser.add_argument(
        "--out", required=True, type=Path, help="folder of the pairs; resumes one made with the same settings"
    )
    parser.add_argument("--count", type=int, default=10000, help="pairs, up to a whole batch more (default: 10000)")
    cli.add_local_rank(parser)
    arguments = parser.parse_args(argv)
    if arguments.count < 1:
        parser.error(f"--count {arguments.count} must be at least 1")
    return arguments


def main() -> int:
    arguments = parse()

    def run() -> None:
        config = load_distill_config(arguments.config, arguments.set)
        cli.set_compile_cache(arguments.out)
        from audiox_trainer.trainer.distillation.make_pairs import make_pairs  # imports DeepSpeed, which takes seconds

        count = make_pairs(config, arguments.teacher, arguments.out, arguments.count)
        if os.environ.get("RANK", "0") == "0":
            print(f"{arguments.out}: {count} pairs")

    return cli.run(run)


if __name__ == "__main__":
    sys.exit(main())
