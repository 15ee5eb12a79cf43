"""Read every byte of checkpoints, shards, pairs and weights, and name each file that is not as it was written.

Ends with 0 when all is good, with 77 when something is damaged.

examples:
  python launch/verify.py runs/2p7b
  python launch/verify.py data/mine weights/2p7b
"""

import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from audiox_trainer.trainer.core import cli


def main() -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="one of these, or a folder that holds some")
    parser.add_argument("--rate", type=int, metavar="ROUNDS", help="compare its speed with the disk's and the hash's")
    arguments = parser.parse_args()

    def run(path: Path) -> None:
        from audiox_trainer.trainer.benchmarks.verify import rates
        from audiox_trainer.trainer.checkpoint.verify import verify

        if arguments.rate is not None:
            print(rates(path, arguments.rate))
        else:
            verify(path, tqdm.write)

    return max(cli.exit_code(partial(run, path)) for path in arguments.paths)


if __name__ == "__main__":
    sys.exit(main())
