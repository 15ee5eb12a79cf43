"""The command lines of `launch/prepare.py` that make manifests; imports nothing that takes time."""

import argparse
from pathlib import Path

from audiox_trainer.trainer.core.tasks import DOMAINS

SCAN = """Files of one name and folder become one line: dog.wav and dog.mp4 are sound and pictures of the same moment,
every line of dog.txt is a caption, dog.json holds keys of a manifest (category, SED, genre, ...), or a list of objects
with start and end, one a segment. docs/data.md describes the manifest."""


ANNOTATE = """Asks for what lines lack: caption, category, SED and time_relation; of music caption, genre, mood,
instruments and tempo. The key comes from the environment variable OPENAI_API_KEY. Answers are kept in OUT.answers as
they come, so the same command goes on after any stop; what could not be filled is listed in OUT.unfilled.jsonl.

  python launch/prepare.py annotate --manifest clips.jsonl --endpoint http://127.0.0.1:8000/v1 \\
      --model Qwen/Qwen2-Audio-7B-Instruct --out annotated.jsonl"""


def add(kinds: argparse._SubParsersAction) -> None:
    """Adds the commands; `act` of what they parse to carries one out."""
    raw = argparse.RawDescriptionHelpFormatter
    scan = kinds.add_parser("scan", help="write a first manifest of a folder", epilog=SCAN, formatter_class=raw)
    scan.add_argument("folder", type=Path, help="looked through with the folders in it; hidden files are left alone")
    scan.add_argument("--out", type=Path, required=True, help="manifest to write; must not exist")
    scan.add_argument("--domain", choices=DOMAINS, default="audio", help="(default: %(default)s)")
    scan.add_argument("--pictures", action="store_true", help="a picture beside a sound is shown all the while")
    scan.set_defaults(act=_scan)
    annotate = kinds.add_parser("annotate", help="let a model fill a manifest", epilog=ANNOTATE, formatter_class=raw)
    annotate.add_argument("--manifest", type=Path, required=True, help="JSON lines, one file or segment each")
    annotate.add_argument("--endpoint", required=True, metavar="URL", help="of an OpenAI-compatible API, with its /v1")
    annotate.add_argument("--model", required=True, help="as the endpoint names it; must hear")
    annotate.add_argument("--out", type=Path, required=True, help="manifest to write; must not exist")
    annotate.add_argument("--concurrency", type=int, default=8, help="questions at a time (default %(default)s)")
    annotate.add_argument("--rate", type=float, default=0, help="requests a minute at most (default: any number)")
    annotate.add_argument("--attempts", type=int, default=3, help="answers asked for of a clip (default %(default)s)")
    annotate.add_argument("--retries", type=int, default=8, help="of a request that fails (default %(default)s)")
    annotate.add_argument("--timeout", type=float, default=120, help="seconds of a request (default %(default)s)")
    annotate.add_argument("--pictures", type=int, default=4, help="sent of a clip with video (default %(default)s)")
    annotate.add_argument("--longest", type=float, default=60, help="seconds of a clip (default %(default)s)")
    annotate.add_argument("--again", action="store_true", help="ask anew what was refused in an earlier run")
    annotate.set_defaults(act=_annotate)


def _scan(arguments: argparse.Namespace) -> None:
    from audiox_trainer.trainer.manifest.scan import scan

    report = scan(arguments.folder, arguments.out, arguments.domain, arguments.pictures)
    print(f"{arguments.out}: {report}")


def _annotate(arguments: argparse.Namespace) -> None:
    from audiox_trainer.trainer.manifest.annotate import annotate
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
    summary = annotate(arguments.manifest, arguments.out, endpoint, arguments.concurrency, arguments.again)
    print(f"{arguments.out}: {summary}")
