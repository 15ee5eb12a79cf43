"""Pretrain AudioX-Base from shards.

examples:
  deepspeed launch/pretrain.py --config configs/tiny.json --output runs/tiny
  torchrun --nproc-per-node 8 launch/pretrain.py --config configs/2p7b.json
  python launch/pretrain.py --config configs/tiny.json --set optimizer.lr=2e-4 --set training.steps=500
  deepspeed launch/pretrain.py --config configs/tiny.json --output runs/tiny --resume --from 3000
  python launch/pretrain.py --config configs/tiny.json --self-test --set zero.stage=3
"""

import argparse
import sys

from audiox_trainer.trainer.core import cli
from audiox_trainer.trainer.core.config import load_pretrain_config


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    cli.add_config(parser)
    cli.add_output(parser)
    cli.add_self_test(parser)
    cli.add_local_rank(parser)
    return parser.parse_args(argv)


def main() -> int:
    arguments = parse()

    def run() -> None:
        config, output = load_pretrain_config(arguments.config, arguments.set), cli.output_folder(arguments)
        from audiox_trainer.trainer.training.pretrain import pretrain  # imports DeepSpeed, which takes seconds

        pretrain(config, output, arguments.resume, arguments.from_step, arguments.self_test)

    return cli.run(run)


if __name__ == "__main__":
    sys.exit(main())
