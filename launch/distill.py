"""Distil AudioX-Base into AudioX-Turbo: four steps, no guidance.

examples:
  deepspeed launch/distill.py --config configs/distill_tiny.json --teacher weights/tiny --output runs/tiny-turbo
  deepspeed launch/distill.py --config configs/distill_2p7b.json --teacher weights/2p7b
  torchrun --nproc-per-node 8 launch/distill.py --config configs/distill_2p7b.json --teacher weights/2p7b --resume
"""

import argparse
import sys
from pathlib import Path

from audiox_trainer.trainer.core import cli
from audiox_trainer.trainer.core.distill_config import load_distill_config


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    cli.add_config(parser, "the run's JSON file, see configs/distill_*.json")
    parser.add_argument("--teacher", required=True, type=Path, help="weights folder made by launch/convert.py")
    cli.add_output(parser)
    cli.add_local_rank(parser)
    return parser.parse_args(argv)


def main() -> int:
    arguments = parse()

    def run() -> None:
        config, output = load_distill_config(arguments.config, arguments.set), cli.output_folder(arguments)
        from audiox_trainer.trainer.training.distill import distill  # imports DeepSpeed, which takes seconds

        distill(config, arguments.teacher, output, arguments.resume, arguments.from_step)

    return cli.run(run)


if __name__ == "__main__":
    sys.exit(main())
