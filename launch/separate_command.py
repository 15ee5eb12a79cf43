"""The command of `launch/prepare.py` that separates music from speech. Imports nothing slow."""

import argparse
from functools import partial
from pathlib import Path

from audiox_trainer.launch.stage_commands import add_device, add_stage, run_stage_command
from audiox_trainer.trainer.core.tasks import DOMAINS

SEPARATE = """Each wanted stem of a line's sound becomes a FLAC file in the folder --out-dir and a line of OUT, which
names it and, under `separated`, where it came from. Stems of silence are left out and stand in OUT.left_out.jsonl.
Demucs (pip install 'audiox-trainer[separate]') reads its model from --weights: `hf download adefossez/HTDemucs
--local-dir weights/demucs`. Any other network is a TorchScript or ONNX file with a few lines of JSON (docs/data.md).
The same command continues what was stopped.

  python launch/prepare.py separate --manifest kept.jsonl --model htdemucs --out-dir stems --out separated.jsonl
  python launch/prepare.py separate --manifest kept.jsonl --model separator.json --stems music --out-dir stems \\
      --out separated.jsonl"""


def add(kinds: argparse._SubParsersAction) -> None:
    """Add the command. `act` of the parsed arguments runs it."""
    raw = argparse.RawDescriptionHelpFormatter
    separate = kinds.add_parser("separate", help="separate music from speech", epilog=SEPARATE, formatter_class=raw)
    add_stage(separate, _separate)
    separate.add_argument("--model", required=True, help="name of one of Demucs's models, or a JSON file")
    separate.add_argument(
        "--weights", type=Path, default=Path("weights/demucs"), help="folder of Demucs's files (default %(default)s)"
    )
    stems = "stems to keep, or sums of them as drums+bass (default: the sum of all but vocals, speech and noise)"
    separate.add_argument("--stems", nargs="+", default=(), metavar="STEM", help=stems)
    separate.add_argument("--out-dir", type=Path, required=True, help="folder of the stems; new, or of this command")
    domains = "lines to separate; others stay as they are (default %(default)s)"
    separate.add_argument("--domain", choices=(*DOMAINS, "all"), default="music", help=domains)
    add_device(separate)


def _separate(arguments: argparse.Namespace) -> None:
    from audiox_trainer.trainer.stages.separate import Separation, separate_manifest

    domains = DOMAINS if arguments.domain == "all" else (arguments.domain,)
    stems = tuple(arguments.stems)
    separation = Separation(
        arguments.model, arguments.weights, arguments.out_dir, stems, domains, arguments.device or ""
    )
    run_stage_command(arguments, partial(separate_manifest, arguments.manifest, arguments.out, separation))
