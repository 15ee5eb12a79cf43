"""Measure ours and the alternatives in one run, interleaved, and print a table and JSON.

examples:
  python launch/bench.py train --config configs/tiny.json
  python launch/bench.py train --config configs/tiny.json --rounds 20 --out bench.json
"""

import argparse
import json
import sys
from pathlib import Path

from audiox_turbo.trainer.config import load_config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="training steps through DeepSpeed against a plain PyTorch loop")
    train.add_argument("--config", required=True, type=Path, help="the run's JSON file")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a config value")
    train.add_argument("--rounds", type=int, default=10, help="turns that each variant takes (default: 10)")
    train.add_argument("--inner", type=int, default=5, help="steps in a turn (default: 5)")
    train.add_argument("--out", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, arguments.set)
        from audiox_turbo.trainer import bench  # imports DeepSpeed

        result = bench.train(config, arguments.rounds, arguments.inner)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{'variant':20} {'samples/s':>10} {'low':>8} {'high':>8} {'x plain':>8} {'MFU':>6}")
    for row in result["rows"]:
        print(
            f"{row['variant']:20} {row['samples_per_s']:10.1f} {row['low']:8.1f} {row['high']:8.1f} "
            f"{row['ratio_to_plain']:8.3f} {row['mfu']:6.3f}"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
