"""Solve a teacher's guided ODE once, for the warm start of its students: pairs of noise and endpoint, in shards.

examples:
  deepspeed launch/pairs.py --config configs/distill_tiny.json --teacher weights/tiny --out data/pairs --count 6000
  torchrun --nproc-per-node 8 launch/pairs.py --config configs/distill_2p7b.json --teacher weights/2p7b --out data/pairs

The configuration says which data, which guidance (`distillation.guidance`) and which steps (`warm_start.steps`). Run it
again after a stop: it goes on. Then distil with --set warm_start.pairs=data/pairs --set warm_start.updates=400
"""

import argparse
import sys
from pathlib import Path

from audiox_turbo.trainer.distill_config import load_distill_config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="the distillation's JSON file")
    parser.add_argument("--teacher", required=True, type=Path, help="weights folder made by launch/convert.py")
    parser.add_argument(
        "--out", required=True, type=Path, help="folder of the pairs; one that was begun is gone on with"
    )
    parser.add_argument("--count", type=int, default=10000, help="pairs, rounded up to whole parts (default: 10000)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a config value")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher passes it
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error(f"--count {arguments.count} must be at least 1")
    try:
        config = load_distill_config(arguments.config, arguments.set)
        from audiox_turbo.trainer.pairs import make_pairs  # imports DeepSpeed, seconds that a typo need not cost

        count = make_pairs(config, arguments.teacher, arguments.out, arguments.count)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {count} pairs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
