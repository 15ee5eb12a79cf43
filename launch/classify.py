"""Real recordings with one category each: hold some out, and judge generated sound by a classifier of the others.

examples:
  python launch/classify.py split --manifest drums/manifest.jsonl --out data/drums
  python launch/prepare.py files --manifest data/drums/train.jsonl --config configs/drums.json --out data/drums/shards
  deepspeed launch/pretrain.py --config configs/drums.json
  python launch/convert.py runs/drums --out weights/drums
  python launch/classify.py judge --recordings data/drums --weights weights/drums --out drums.json
"""

import argparse
import sys
from pathlib import Path

from audiox_trainer.trainer.core import cli


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    split = commands.add_parser("split", help="hold out a share of each category")
    split.add_argument("--manifest", required=True, type=Path)
    split.add_argument("--out", required=True, type=Path, help="folder for train.jsonl and held_out.jsonl")
    split.add_argument("--least", type=int, default=20, help="fewest recordings of a category (default: 20)")
    split.add_argument("--held-out", type=float, default=0.2, metavar="SHARE", help="(default: 0.2)")
    split.add_argument("--seed", type=int, default=0)
    judge = commands.add_parser("judge", help="let a classifier of the recordings name generated sounds")
    judge.add_argument("--recordings", required=True, type=Path, help="folder written by split")
    cli.add_weights(judge)
    judge.add_argument("--per-category", type=int, default=40, help="sounds per category (default: 40)")
    judge.add_argument("--seed", type=int, default=0)
    judge.add_argument("--out", required=True, type=Path, help="JSON file of the result")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    from audiox_trainer.trainer.core.files import write_json
    from audiox_trainer.trainer.evaluation import recordings
    from audiox_trainer.trainer.generation.generator import Generator
    from audiox_trainer.trainer.manifest.split import HELD_OUT, TRAIN

    if arguments.command == "split":
        counts = recordings.split_recordings(
            arguments.manifest, arguments.out, arguments.least, arguments.held_out, arguments.seed
        )
        for name, (train, held_out) in counts.items():
            print(f"{name:20} {train:4} for training, {held_out:3} held out")
        return
    train, held_out = (arguments.recordings / name for name in (TRAIN, HELD_OUT))
    generator = Generator(arguments.weights)
    result = recordings.evaluate_recordings(generator, train, held_out, arguments.per_category, arguments.seed)
    write_json(arguments.out, result)
    print(f"held-out recordings: {result['held_out_accuracy']:.3f} of {result['held_out']} correct")
    print(f"generated sounds:    {result['generated_accuracy']:.3f} of {result['generated']} recognised as requested")
    distances = f"generated {result['generated_nearest']:.2f}, held-out recordings {result['held_out_nearest']:.2f}"
    print(f"median distance to the nearest training recording: {distances}")
    for name, row in zip(result["names"], result["generated_confusion"], strict=True):
        print(f"  {name:14}" + "".join(f"{count:5}" for count in row))


def main() -> int:
    arguments = parse()
    return cli.run(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
