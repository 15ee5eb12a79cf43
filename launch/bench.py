"""Measure ours and the alternatives in one run, interleaved, and print a table and JSON.

examples:
  python launch/bench.py train --config configs/tiny.json
  python launch/bench.py train --config configs/tiny.json --rounds 20 --out bench.json
"""

import json
import sys
from pathlib import Path

from audiox_turbo.trainer import command
from audiox_turbo.trainer.config import load_config


def main() -> int:
    parser = command.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="training steps through DeepSpeed against a plain PyTorch loop")
    command.add_config(train)
    train.add_argument("--rounds", type=int, default=10, help="turns that each variant takes (default: 10)")
    train.add_argument("--inner", type=int, default=5, help="steps in a turn (default: 5)")
    train.add_argument("--out", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()

    def run() -> None:
        config = load_config(arguments.config, arguments.set)
        from audiox_turbo.trainer import bench  # imports DeepSpeed

        result = bench.train(config, arguments.rounds, arguments.inner)
        print(f"{'variant':20} {'samples/s':>10} {'low':>8} {'high':>8} {'x plain':>8} {'MFU':>6}")
        for row in result["rows"]:
            print(
                f"{row['variant']:20} {row['samples_per_s']:10.1f} {row['low']:8.1f} {row['high']:8.1f} "
                f"{row['ratio_to_plain']:8.3f} {row['mfu']:6.3f}"
            )
        if arguments.out:
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")

    return command.exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
