"""Say which goals the results of launch/bench.py in a folder meet, and draw them.

examples:
  bash launch/measure.sh runs/measured && python launch/measured.py runs/measured
  python launch/measured.py runs/measured --charts docs/images
"""

import sys
from pathlib import Path

from audiox_trainer.trainer.core import cli


def main() -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("folder", type=Path, help="of JSON files named as launch/measure.sh names them")
    parser.add_argument("--charts", type=Path, help="folder for charts as SVG (default: none)")
    arguments = parser.parse_args()

    def run() -> None:
        from audiox_trainer.trainer.benchmarks.goals import draw, findings, read

        results = read(arguments.folder)
        print(*(finding.line() for finding in findings(results)), sep="\n")
        if arguments.charts:
            print(*draw(results, arguments.charts), sep="\n")

    return cli.exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
