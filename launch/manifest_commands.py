"""The commands of `launch/prepare.py` that make manifests. Imports nothing slow."""

import argparse
from pathlib import Path

from audiox_trainer.trainer.core.tasks import DOMAINS

SCAN = """Files with the same folder and name become one line: dog.wav and dog.mp4 are the sound and the pictures of one
recording, each line of dog.txt is a caption, and dog.json holds keys of a manifest (category, SED, genre, ...), or a
list of such objects with start and end, one per segment. docs/data.md describes the manifest."""


ANNOTATE = """Asks a model for what a line lacks: caption, category, SED and time_relation; for music caption, genre,
mood, instruments and tempo. The API key is read from the environment variable OPENAI_API_KEY. Answers are stored in
OUT.answers as they arrive, so the same command resumes after a stop. Lines that could not be filled are listed in
OUT.unfilled.jsonl.

  python launch/prepare.py annotate --manifest clips.jsonl --endpoint http://127.0.0.1:8000/v1 \\
      --model Qwen/Qwen2-Audio-7B-Instruct --out annotated.jsonl"""


def add(kinds: argparse._SubParsersAction) -> None:
    """Add the commands. `act` of the parsed arguments runs the chosen one."""
    raw = argparse.RawDescriptionHelpFormatter
    scan = kinds.add_parser("scan", help="write a manifest of the files in a folder", epilog=SCAN, formatter_class=raw)
    scan.add_argument("folder", type=Path, help="folder to scan, with its subfolders; hidden files are skipped")
    scan.add_argument("--out", type=Path, required=True, help="manifest to write; must not exist")
    scan.add_argument("--domain", choices=DOMAINS, default="audio", help="of all lines (default: %(default)s)")
    scan.add_argument("--pictures", action="store_true", help="use a picture of the same name as a still video")
    scan.set_defaults(act=_scan)
    annotate = kinds.add_parser(
        "annotate", help="let a model complete a manifest", epilog=ANNOTATE, formatter_class=raw
    )
    annotate.add_argument("--manifest", type=Path, required=True, help="JSON lines, one file or segment per line")
    annotate.add_argument(
        "--endpoint", required=True, metavar="URL", help="address of an OpenAI-compatible API, with its /v1"
    )
    annotate.add_argument("--model", required=True, help="name of a model that accepts audio")
    annotate.add_argument("--out", type=Path, required=True, help="manifest to write; must not exist")
    annotate.add_argument("--concurrency", type=int, default=8, help="requests at the same time (default %(default)s)")
    annotate.add_argument("--rate", type=float, default=0, help="most requests per minute (default: no limit)")
    annotate.add_argument(
        "--attempts", type=int, default=3, help="invalid answers per clip before giving up (default %(default)s)"
    )
    annotate.add_argument("--retries", type=int, default=8, help="retries of a failed request (default %(default)s)")
    annotate.add_argument("--timeout", type=float, default=120, help="seconds per request (default %(default)s)")
    annotate.add_argument(
        "--pictures", type=int, default=4, help="pictures to send of a clip with video (default %(default)s)"
    )
    annotate.add_argument(
        "--longest", type=float, default=60, help="most seconds of a clip to send (default %(default)s)"
    )
    add_private(annotate)
    annotate.add_argument("--again", action="store_true", help="ask again about clips that an earlier run gave up")
    annotate.set_defaults(act=_annotate)


def add_private(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--private-addresses",
        action="store_true",
        help="read http:// and https:// addresses that lead to this machine or its own network, too",
    )


def _scan(arguments: argparse.Namespace) -> None:
    from audiox_trainer.trainer.manifest.scan import scan

    report = scan(arguments.folder, arguments.out, arguments.domain, arguments.pictures)
    print(f"{arguments.out}: {report}")


def _annotate(arguments: argparse.Namespace) -> None:
    from audiox_trainer.trainer.manifest.annotate import annotate_manifest
    from audiox_trainer.trainer.manifest.endpoint import Endpoint

    for name in ("concurrency", "attempts", "timeout", "longest"):
        if not getattr(arguments, name) > 0:
            raise ValueError(f"--{name} {getattr(arguments, name)}: must be above 0")
    for name in ("rate", "retries", "pictures"):
        if not getattr(arguments, name) >= 0:
            raise ValueError(f"--{name} {getattr(arguments, name)}: must be 0 or more")
    endpoint = Endpoint(
        arguments.endpoint, arguments.model, arguments.rate, arguments.attempts, arguments.retries, arguments.timeout,
        arguments.pictures, arguments.longest,
    )  # fmt: skip
    summary = annotate_manifest(
        arguments.manifest, arguments.out, endpoint, arguments.concurrency, arguments.again, arguments.private_addresses
    )
    print(f"{arguments.out}: {summary}")
