"""A listening test: people rate anonymous sounds in quality (OVL) and relevance (REL) from 1 to 100.

examples:
  python launch/listen.py make --sounds sounds/turbo sounds/baseline --reference audiocaps.jsonl --count 20 \
      --out study --key study-key.json
  python launch/listen.py read --key study-key.json answers/*.json --out study.json

`make` writes a folder with a page, study/index.html, that opens without a server: send it to the listeners. Each sends
a file of answers back. The key says whose sound is which, and stays with you.
"""

import argparse
import sys
from pathlib import Path

from audiox_trainer.trainer.core import cli


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    make = kinds.add_parser("make", help="write the page").add_argument
    make("--sounds", nargs="+", type=Path, required=True, help="folders of anybody's sounds for the prompts")
    make("--reference", type=Path, required=True, help="prompts of launch/generate.py; true sounds take part too")
    make("--count", type=cli.positive, help="prompts, drawn at random (default: all)")
    make("--seed", type=int, default=0, help="of that draw (default: 0)")
    make("--title", default="Listening test", help="of the page (default: %(default)s)")
    make("--out", type=Path, required=True, help="folder of the page; must not exist")
    make("--key", type=Path, required=True, help="file that says whose sound is which; must not exist")
    read = kinds.add_parser("read", help="make tables of the answers").add_argument
    read("answers", nargs="+", type=Path, help="the files that listeners sent back")
    read("--key", type=Path, required=True, help="as `make` wrote it")
    read("--seed", type=int, default=0, help="of the intervals (default: 0)")
    read("--out", type=Path, required=True, help="JSON file of the figures")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    from audiox_trainer.trainer.core.english import amount
    from audiox_trainer.trainer.core.files import write_json
    from audiox_trainer.trainer.pages.tables import as_text
    from audiox_trainer.trainer.sound_evaluation.listening import make_study, read_study, study_tables

    a = arguments
    if a.kind == "make":
        key = make_study(a.sounds, a.reference, a.out, a.key, a.count, a.seed, a.title)
        print(f"{a.out / 'index.html'}: {amount(len(key.items), 'sound')} of {amount(len(key.systems), 'system')}")
        print(f"{a.key}: which is whose; keep it from the listeners")
        return
    report = read_study(a.key, a.answers, a.seed)
    write_json(a.out, report)
    print("\n\n".join(as_text(table) for table in study_tables(report)))
    print(f"\n{a.out}")


def main() -> int:
    arguments = parse()
    return cli.run(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
