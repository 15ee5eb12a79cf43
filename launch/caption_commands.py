"""The commands of `launch/prepare.py` that ask a model about the lines of a manifest. Imports nothing slow."""

import argparse
from typing import Any

from audiox_trainer.launch.stage_commands import add_stage, run_stage_command
from audiox_trainer.trainer.core import cli

ANNOTATE = """Asks a model for what a line lacks: caption, category, SED and time_relation; for music caption, genre,
mood, instruments and tempo. The API key is read from the environment variable OPENAI_API_KEY. Answers are stored in
OUT.answers as they arrive, and the same command continues what was stopped. What could not be filled, and lines that
are left out because their media are damaged, stand in OUT.left_out.jsonl, statistics in OUT.html.

  python launch/prepare.py annotate --manifest kept.jsonl --endpoint http://127.0.0.1:8000/v1 \\
      --model Qwen/Qwen2-Audio-7B-Instruct --out annotated.jsonl"""


REWRITE = """A second model hears each line, sees its annotation, and writes captions of each kind that the fields of
the line allow: rephrase (of caption), count (category), time (SED), order (time_relation); for music genre, mood,
instruments and tempo. Each is stored with its source, the model, and its kind. All else is as in `annotate`.

  python launch/prepare.py rewrite --manifest annotated.jsonl --endpoint http://127.0.0.1:8000/v1 \\
      --model Qwen/Qwen2-Audio-7B-Instruct --out captioned.jsonl"""


def add(kinds: argparse._SubParsersAction) -> None:
    """Add the commands. `act` of the parsed arguments runs the chosen one."""
    raw = argparse.RawDescriptionHelpFormatter
    annotate = kinds.add_parser(
        "annotate", help="let a model complete a manifest", epilog=ANNOTATE, formatter_class=raw
    )
    add_stage(annotate, _annotate)
    _add_endpoint(annotate, temperature=0.2)
    rewrite = kinds.add_parser("rewrite", help="let a model write captions", epilog=REWRITE, formatter_class=raw)
    add_stage(rewrite, _rewrite)
    _add_endpoint(rewrite, temperature=0.7)
    rewrite.add_argument("--kinds", nargs="+", help="kinds of captions (default: all that a line's fields allow)")
    rewrite.add_argument("--captions", type=cli.positive, default=2, help="of each kind (default %(default)s)")


def _add_endpoint(to: argparse.ArgumentParser, temperature: float) -> None:
    add = to.add_argument
    add("--endpoint", required=True, metavar="URL", help="address of an OpenAI-compatible API, with its /v1")
    add("--model", required=True, help="name of a model that accepts audio")
    add("--concurrency", type=cli.positive, default=8, help="requests at a time, of all workers (default %(default)s)")
    add("--rate", type=float, default=0.0, help="most requests per minute, of all workers (default: no limit)")
    add("--attempts", type=cli.positive, default=3, help="invalid answers to a question (default %(default)s)")
    add("--retries", type=int, default=8, help="retries of a failed request (default %(default)s)")
    add("--timeout", type=float, default=120.0, help="seconds per request (default %(default)g)")
    add("--pictures", type=int, default=4, help="pictures to send of a clip with video (default %(default)s)")
    add("--longest", type=float, default=60.0, help="most seconds of a clip to send (default %(default)g)")
    add("--temperature", type=float, default=temperature, help="of the model's choices (default %(default)g)")
    add("--again", action="store_true", help="ask again where earlier answers were refused")
    price = "money per million tokens read and written, for the forecast and the cost (default: 0 0)"
    add("--price", nargs=2, type=float, default=(0.0, 0.0), metavar=("IN", "OUT"), help=price)
    add("--audio-tokens", type=float, default=32.0, help="of a second of sound, for the forecast (default %(default)g)")
    add("--at-most", type=float, metavar="MONEY", help="stop before anything is asked if the forecast is higher")


def _endpoint(a: argparse.Namespace) -> tuple[Any, Any]:
    """The endpoint, and how it is asked. Raises ValueError for numbers that cannot be."""
    from audiox_trainer.trainer.captions.ask_stages import AskOptions
    from audiox_trainer.trainer.manifest.endpoint import Endpoint
    from audiox_trainer.trainer.manifest.prices import Price

    endpoint = Endpoint(
        a.endpoint, a.model, a.rate, a.attempts, a.retries, a.timeout, a.pictures, a.longest, a.temperature
    )
    return endpoint, AskOptions(a.concurrency, a.again, Price(a.price[0], a.price[1], a.audio_tokens), a.at_most)


def _annotate(a: argparse.Namespace) -> None:
    from audiox_trainer.trainer.captions.annotate import Annotation
    from audiox_trainer.trainer.captions.ask_stages import annotate_manifest

    endpoint, options = _endpoint(a)
    run_stage_command(a, lambda workers: annotate_manifest(a.manifest, a.out, Annotation(endpoint), workers, options))


def _rewrite(a: argparse.Namespace) -> None:
    from audiox_trainer.trainer.captions.ask_stages import rewrite_manifest
    from audiox_trainer.trainer.captions.rewrite import KIND_NAMES, Rewriting

    endpoint, options = _endpoint(a)
    rewriting = Rewriting(endpoint, tuple(a.kinds or KIND_NAMES), a.captions)
    run_stage_command(a, lambda workers: rewrite_manifest(a.manifest, a.out, rewriting, workers, options))
