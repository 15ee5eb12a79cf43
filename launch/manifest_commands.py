"""The commands of `launch/prepare.py` that make manifests. Imports nothing slow."""

import argparse
from pathlib import Path

from audiox_trainer.trainer.core.tasks import DOMAINS

SCAN = """Files with the same folder and name become one line: dog.wav and dog.mp4 are the sound and the pictures of one
recording, each line of dog.txt is a caption, and dog.json holds keys of a manifest (category, SED, genre, ...), or a
list of such objects with start and end, one per segment. docs/data.md describes the manifest."""


SPLIT = """Writes OUT/train.jsonl and OUT/held_out.jsonl. The path of a sound decides where it goes, so all segments of
a file go together, and when the manifest grows nothing that was held out is trained on.

  python launch/prepare.py split --manifest clips.jsonl --share 0.01 --out clips
  python launch/prepare.py files --manifest clips/held_out.jsonl --config configs/2p7b.json --out data/held_out"""


NEMO = """Lines with audio_filepath, text, duration and offset, as NeMo Curator has them, become lines of a manifest of
ours, and lines of ours become such lines: the first line says which. All other keys stay.

  python launch/prepare.py nemo --manifest curated.jsonl --out all.jsonl
  python launch/prepare.py nemo --manifest kept.jsonl --out for_curator.jsonl"""


def add(kinds: argparse._SubParsersAction) -> None:
    """Add the commands. `act` of the parsed arguments runs the chosen one."""
    raw = argparse.RawDescriptionHelpFormatter
    scan = kinds.add_parser("scan", help="write a manifest of the files in a folder", epilog=SCAN, formatter_class=raw)
    scan.add_argument("folder", type=Path, help="folder to scan, with its subfolders; hidden files are skipped")
    scan.add_argument("--out", type=Path, required=True, help="manifest to write; must not exist")
    scan.add_argument("--domain", choices=DOMAINS, default="audio", help="of all lines (default: %(default)s)")
    scan.add_argument("--pictures", action="store_true", help="use a picture of the same name as a still video")
    scan.set_defaults(act=_scan)
    split = kinds.add_parser("split", help="hold lines out for validation", epilog=SPLIT, formatter_class=raw)
    split.add_argument("--manifest", type=Path, required=True, help="JSON lines, one file or segment per line")
    split.add_argument("--share", type=float, default=0.01, help="of the files to hold out (default: %(default)s)")
    split.add_argument("--out", type=Path, required=True, help="folder of the two manifests; must not exist")
    split.set_defaults(act=_split)
    nemo = kinds.add_parser("nemo", help="convert a NeMo Curator manifest", epilog=NEMO, formatter_class=raw)
    nemo.add_argument("--manifest", type=Path, required=True, help="JSON lines of either form")
    nemo.add_argument("--out", type=Path, required=True, help="manifest of the other form to write; must not exist")
    nemo.set_defaults(act=_nemo)


def _scan(arguments: argparse.Namespace) -> None:
    from audiox_trainer.trainer.manifest.scan import scan

    report = scan(arguments.folder, arguments.out, arguments.domain, arguments.pictures)
    print(f"{arguments.out}: {report}")


def _split(arguments: argparse.Namespace) -> None:
    from audiox_trainer.trainer.manifest.split import HELD_OUT, TRAIN, split_manifest

    train, held_out = split_manifest(arguments.manifest, arguments.out, arguments.share)
    print(f"{arguments.out / TRAIN}: {train} lines; {arguments.out / HELD_OUT}: {held_out} lines")


def _nemo(arguments: argparse.Namespace) -> None:
    from audiox_trainer.trainer.manifest.nemo import convert_nemo

    print(f"{arguments.out}: {convert_nemo(arguments.manifest, arguments.out)}")
