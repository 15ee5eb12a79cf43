"""Say which goals a folder of results of launch/bench.py meets, and draw charts of them.

examples:
  bash launch/measure.sh runs/measured && python launch/check_goals.py runs/measured
  python launch/check_goals.py runs/measured --charts docs/images
"""

import argparse
import sys
from pathlib import Path

from audiox_trainer.trainer.core import cli


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("folder", type=Path, help="of JSON files named as launch/measure.sh names them")
    parser.add_argument("--charts", type=Path, help="folder for charts as SVG (default: none)")
    return parser.parse_args(argv)


def main() -> int:
    arguments = parse()

    def run() -> None:
        from audiox_trainer.trainer.benchmarks.goals import draw_charts, findings, read_results

        results = read_results(arguments.folder)
        print(*(finding.line() for finding in findings(results)), sep="\n")
        if arguments.charts:
            print(*draw_charts(results, arguments.charts), sep="\n")

    return cli.run(run)


if __name__ == "__main__":
    sys.exit(main())
