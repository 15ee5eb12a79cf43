"""Distil AudioX-Base into AudioX-Turbo: four steps, no guidance.

examples:
  deepspeed launch/distill.py --config configs/distill_tiny.json --teacher weights/tiny --output runs/tiny-turbo
  deepspeed launch/distill.py --config configs/distill_2p7b.json --teacher weights/2p7b
  deepspeed launch/distill.py --config configs/distill_tiny.json --teacher weights/tiny --student weights/tiny-turbo \
      --output runs/tiny-turbo-2 --set warm_start.updates=0                         # rounds on top of another student
  torchrun --nproc-per-node 8 launch/distill.py --config configs/distill_2p7b.json --teacher weights/2p7b --resume
"""

import argparse
import sys

from audiox_trainer.trainer.core import cli
from audiox_trainer.trainer.core.distill_config import load_distill_config


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    cli.add_config(parser, "the run's JSON file, see configs/distill_*.json")
    cli.add_teacher(parser)
    parser.add_argument("--student", help="weights that the student begins with (default: the teacher's); init.weights")
    cli.add_output(parser)
    cli.add_self_test(parser)
    cli.add_local_rank(parser)
    return parser.parse_args(argv)


def main() -> int:
    arguments = parse()

    def run() -> None:
        student = [f"init.weights={arguments.student}"] if arguments.student else []
        config = load_distill_config(arguments.config, [*arguments.set, *student])
        output = cli.output_folder(arguments)
        from audiox_trainer.trainer.distillation.distill import distill  # imports DeepSpeed, which takes seconds

        distill(config, arguments.teacher, output, arguments.resume, arguments.from_step, arguments.self_test)

    return cli.run(run)


if __name__ == "__main__":
    sys.exit(main())
