"""Read every byte of checkpoints, shards, pairs and weights, and name each file that is not as it was written.

Exit code 0 if all is good, 77 if something is damaged.

examples:
  python launch/verify.py runs/2p7b
  python launch/verify.py data/mine weights/2p7b
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from audiox_trainer.trainer.core import cli


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="one of these, or a folder with several")
    parser.add_argument(
        "--rate", type=int, metavar="ROUNDS", help="compare its speed with that of the disk and of the hash"
    )
    return parser.parse_args(argv)


def main() -> int:
    arguments = parse()

    def run(path: Path) -> None:
        from audiox_trainer.trainer.benchmarks import verify as benchmark
        from audiox_trainer.trainer.checkpoint.verify import verify

        if arguments.rate is not None:
            print(benchmark.measure(path, arguments.rate))
        else:
            verify(path, tqdm.write)

    return max(cli.run(partial(run, path)) for path in arguments.paths)


if __name__ == "__main__":
    sys.exit(main())
