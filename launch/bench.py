"""Measure ours and the alternatives in one run, interleaved, and print a table and JSON.

examples:
  python launch/bench.py train --config configs/tiny.json
  python launch/bench.py train --config configs/tiny.json --rounds 20 --out bench.json
  python launch/bench.py distill --config configs/distill_tiny.json --set updates.preset=paper
  python launch/bench.py data --config configs/2p7b.json --set training.global_batch=64
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from audiox_turbo.trainer import command
from audiox_turbo.trainer.config import load_config
from audiox_turbo.trainer.distill_config import load_distill_config


def parse() -> argparse.Namespace:
    parser = command.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="training steps through DeepSpeed against a plain PyTorch loop")
    train.add_argument("--inner", type=int, default=5, help="steps in a turn (default: 5)")
    distill = commands.add_parser("distill", help="a round of distillation against its parts timed alone")
    data = commands.add_parser("data", help="reading warm shards of the model's schema")
    data.add_argument("--samples", type=int, default=1024, help="that are made for it (default: 1024)")
    data.add_argument("--folder", type=Path, help="where they are put for the time being (default: the system's)")
    for kind in (train, distill, data):
        command.add_config(kind)
        kind.add_argument("--rounds", type=int, default=10, help="turns that are measured (default: 10)")
        kind.add_argument("--out", type=Path, help="write the result as JSON")
    return parser.parse_args()


def run_train(arguments: argparse.Namespace) -> dict[str, Any]:
    config = load_config(arguments.config, arguments.set)
    from audiox_turbo.trainer import bench  # imports DeepSpeed

    result = bench.train(config, arguments.rounds, arguments.inner)
    print(f"{'variant':20} {'samples/s':>10} {'low':>8} {'high':>8} {'x plain':>8} {'MFU':>6}")
    for row in result["rows"]:
        print(
            f"{row['variant']:20} {row['samples_per_s']:10.1f} {row['low']:8.1f} {row['high']:8.1f} "
            f"{row['ratio_to_plain']:8.3f} {row['mfu']:6.3f}"
        )
    return result


def run_distill(arguments: argparse.Namespace) -> dict[str, Any]:
    config = load_distill_config(arguments.config, arguments.set)
    from audiox_turbo.trainer import bench_distill  # imports DeepSpeed

    result = bench_distill.distill(config, arguments.rounds)
    print(f"{'part':40} {'calls a round':>14} {'ms':>9}")
    for row in result["rows"]:
        print(f"{row['part']:40} {row['calls']:14.1f} {1000 * row['seconds']:9.1f}")
    print(f"a round {result['round_s']:.3f} s, its parts alone {result['parts_s']:.3f} s")
    print(f"ratio {result['ratio']:.3f} ({result['ratio_low']:.3f} to {result['ratio_high']:.3f})")
    return result


def run_data(arguments: argparse.Namespace) -> dict[str, Any]:
    config = load_config(arguments.config, arguments.set)
    from audiox_turbo.trainer import bench_data  # imports DeepSpeed

    result = bench_data.data(config, arguments.samples, arguments.rounds, arguments.folder)
    print(f"{'variant':20} {'samples/s':>10} {'low':>8} {'high':>8} {'MB/s':>8}")
    for row in result["rows"]:
        speeds = f"{row['samples_per_s']:10.1f} {row['low']:8.1f} {row['high']:8.1f}"
        print(f"{row['variant']:20} {speeds} {row['mb_per_s']:8.0f}")
    return result


RUN = {"train": run_train, "distill": run_distill, "data": run_data}


def main() -> int:
    arguments = parse()

    def run() -> None:
        result = RUN[arguments.command](arguments)
        if arguments.out:
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")

    return command.exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
