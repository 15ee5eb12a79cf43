"""Pretrain AudioX-Base from shards.

examples:
  deepspeed launch/pretrain.py --config configs/tiny.json --output runs/tiny
  torchrun --nproc-per-node 8 launch/pretrain.py --config configs/2p7b.json
  python launch/pretrain.py --config configs/tiny.json --set optimizer.lr=2e-4 --set training.steps=500
"""

import sys

from audiox_turbo.trainer import command
from audiox_turbo.trainer.config import load_config


def main() -> int:
    parser = command.parser(__doc__)
    command.add_config(parser)
    command.add_output(parser)
    command.add_launched(parser)
    arguments = parser.parse_args()

    def run() -> None:
        config, output = load_config(arguments.config, arguments.set), command.output(arguments)
        from audiox_turbo.trainer.pretrain import pretrain  # imports DeepSpeed, seconds that a typo need not cost

        pretrain(config, output, arguments.resume)

    return command.exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
