"""The command lines of `launch/prepare.py` that make manifests; imports nothing that takes time."""

import argparse
from pathlib import Path

SCAN = """Files of one name and folder become one line: dog.wav and dog.mp4 are sound and pictures of the same moment,
every line of dog.txt is a caption, dog.json holds keys of a manifest (category, SED, genre, ...), or a list of objects
with start and end, one a segment. docs/data.md describes the manifest."""


def add(kinds: argparse._SubParsersAction) -> None:
    """Adds the commands; `act` of what they parse to carries one out."""
    raw = argparse.RawDescriptionHelpFormatter
    scan = kinds.add_parser("scan", help="write a first manifest of a folder", epilog=SCAN, formatter_class=raw)
    scan.add_argument("folder", type=Path, help="looked through with the folders in it; hidden files are left alone")
    scan.add_argument("--out", type=Path, required=True, help="manifest to write; must not exist")
    scan.add_argument("--domain", choices=("audio", "music"), default="audio", help="(default: %(default)s)")
    scan.add_argument("--pictures", action="store_true", help="a picture beside a sound is shown all the while")
    scan.set_defaults(act=_scan)


def _scan(arguments: argparse.Namespace) -> None:
    from .scan import scan

    report = scan(arguments.folder, arguments.out, arguments.domain, arguments.pictures)
    print(f"{arguments.out}: {report}")
