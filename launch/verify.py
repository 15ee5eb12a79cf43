"""Read every byte of a run, a checkpoint, a folder of shards or weights, and name what is not as it was written.

Ends with 0 when all is good, with 77 when something is damaged.

examples:
  python launch/verify.py runs/2p7b
  python launch/verify.py data/mine weights/2p7b
"""

import sys
from functools import partial
from pathlib import Path

from audiox_turbo.trainer import command


def main() -> int:
    parser = command.parser(__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a folder with any of these in it")
    arguments = parser.parse_args()

    def run(path: Path) -> None:
        from audiox_turbo.trainer.verify import verify

        verify(path, print)

    return max(command.exit_code(partial(run, path)) for path in arguments.paths)


if __name__ == "__main__":
    sys.exit(main())
