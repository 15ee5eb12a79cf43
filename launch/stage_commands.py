"""The commands of `launch/prepare.py` that curate manifests on many workers. Imports nothing slow."""

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from audiox_trainer.trainer.core import cli

SEGMENT = """Each line becomes one line per segment, with the part of its annotation that is true of it. Lines and rests
that are left out stand in OUT.left_out.jsonl, the amounts in OUT.html. The same command continues what was stopped.

  python launch/prepare.py segment --manifest all.jsonl --seconds 10 --out clips.jsonl
  python launch/prepare.py segment --manifest films.jsonl --at scenes --out clips.jsonl"""


FILTER = """Leaves out lines that are damaged, silent, clipped, static, too short or too long, that have unwanted words,
or that networks judge badly, before anything is paid for. OUT.left_out.jsonl names them with the reason, OUT.html shows
the measured values. The same command continues what was stopped.

  python launch/prepare.py filter --manifest clips.jsonl --filters configs/filters.json --out kept.jsonl
  python launch/prepare.py filter --manifest clips.jsonl --filters configs/filters_music.json --out kept.jsonl"""


def add(kinds: argparse._SubParsersAction) -> None:
    """Add the commands. `act` of the parsed arguments runs the chosen one."""
    raw = argparse.RawDescriptionHelpFormatter
    segment = kinds.add_parser("segment", help="cut lines into segments", epilog=SEGMENT, formatter_class=raw)
    add_stage(segment, _segment)
    segment.add_argument("--seconds", type=float, default=10.0, help="longest segment (default %(default)g)")
    segment.add_argument("--shortest", type=float, default=1.0, help="shortest one to keep, in s (default %(default)g)")
    places = "cut by time, where it is quietest, or where the picture's scene changes (default %(default)s)"
    segment.add_argument("--at", choices=("time", "silences", "scenes"), default="time", help=places)
    filters = kinds.add_parser("filter", help="leave lines out by filters", epilog=FILTER, formatter_class=raw)
    add_stage(filters, _filter)
    filters.add_argument("--filters", type=Path, required=True, help="JSON file of limits, words and networks")
    duplicates = "also leave out what sounds, and as a film looks, nearly like another line"
    filters.add_argument("--no-duplicates", action="store_true", help=duplicates)
    add_device(filters)


def add_stage(to: argparse.ArgumentParser, act: Callable[[argparse.Namespace], None]) -> None:
    """Add what the stages have in common."""
    to.add_argument("--manifest", type=Path, required=True, help="JSON lines, one file or segment per line")
    to.add_argument("--out", type=Path, required=True, help="manifest to write; must not exist")
    add_workers(to)
    to.set_defaults(act=act)


def add_workers(to: argparse.ArgumentParser) -> None:
    """Add who works, and for how long."""
    to.add_argument(
        "--workers",
        type=cli.positive,
        default=cores(),
        help="processes; the result does not depend on them (default: cores of this task, here %(default)s)",
    )
    to.add_argument("--address", default="", help="Ray cluster: auto, HOST:PORT, or local for one of this machine")
    to.add_argument(
        "--limit", type=float, default=1800, metavar="SECONDS",
        help="give a file up after this time without a clip (default %(default)g)",
    )  # fmt: skip
    to.add_argument(
        "--unreachable", type=int, default=10, metavar="COUNT",
        help="stop after this many unreachable addresses in a row, 0 for never (default %(default)s)",
    )  # fmt: skip
    add_private(to)


def cores() -> int:
    """Cores of this task: what Slurm assigns to it, else those that it may use."""
    return int(os.environ.get("SLURM_CPUS_PER_TASK", 0)) or len(os.sched_getaffinity(0))


def add_device(to: argparse.ArgumentParser) -> None:
    to.add_argument("--device", help="of the networks; each worker has its own (default: all GPUs, else the CPU)")


def add_private(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--private-addresses",
        action="store_true",
        help="read http:// and https:// addresses that lead to this machine or its own network, too",
    )


def _segment(arguments: argparse.Namespace) -> None:
    from audiox_trainer.trainer.stages.curate import segment_manifest
    from audiox_trainer.trainer.stages.segment import Segmentation

    segmentation = Segmentation(arguments.seconds, arguments.shortest, arguments.at)
    run_stage_command(arguments, partial(segment_manifest, arguments.manifest, arguments.out, segmentation))


def _filter(arguments: argparse.Namespace) -> None:
    from audiox_trainer.trainer.stages.curate import filter_manifest
    from audiox_trainer.trainer.stages.filter_config import read_filters

    filters, duplicates, device = read_filters(arguments.filters), not arguments.no_duplicates, arguments.device or ""
    stage = partial(filter_manifest, arguments.manifest, arguments.out, filters, duplicates=duplicates, device=device)
    run_stage_command(arguments, stage)


def run_stage_command(arguments: argparse.Namespace, stage: Callable[[Any], object]) -> None:
    """On the workers that the arguments name; on a node that works for another one, until its work is done."""
    from audiox_trainer.trainer.stages.stage import StageWorkers
    from audiox_trainer.trainer.workers.cluster import launched

    with launched(arguments.address, arguments.workers) as address:
        if address is not None:
            limits = arguments.limit, arguments.unreachable
            workers = StageWorkers(arguments.workers, address, *limits, arguments.private_addresses)
            print(f"{arguments.out}: {stage(workers)}")
