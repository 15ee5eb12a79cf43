"""Make the paper's tables from reports: as a page with players, Markdown, LaTeX and JSON.

examples:
  python launch/tables.py tables.json --out tables

tables.json says which report goes into which row (docs/evaluation.md):
  {"rows": [{"table": "I", "task": "T2A", "dataset": "AudioCaps", "method": "ours", "reports": ["audiocaps.json"],
             "sounds": "turbo", "ours": true}]}
"""

import argparse
import sys
from pathlib import Path

from audiox_trainer.trainer.core import cli


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("file", type=Path, help="JSON file of rows and players; its paths start from its folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of tables.html, .md, .tex and .json")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    from audiox_trainer.trainer.pages.tables import as_text
    from audiox_trainer.trainer.paper.tables import as_table, build_tables, write_tables
    from audiox_trainer.trainer.paper.tables_file import read_tables_file

    file, folder = read_tables_file(arguments.file), arguments.file.parent
    tables = build_tables(file, folder)
    paths = write_tables(file, tables, folder, arguments.out)
    print("\n\n".join(as_text(as_table(table)) for table in tables))
    print("\n" + "\n".join(map(str, paths)))


def main() -> int:
    arguments = parse()
    return cli.run(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
