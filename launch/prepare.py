"""Prepare shards from procedural scenes, or from the media files of a manifest."""

import argparse
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

from audiox_trainer.launch import manifest_commands
from audiox_trainer.trainer.core import cli

EPILOG = """examples:
  python launch/prepare.py scan recordings --out clips.jsonl
  python launch/prepare.py scenes --out data/scenes --clips 4000
  python launch/prepare.py files --manifest clips.jsonl --config configs/tiny.json --out data/mine
  srun python launch/prepare.py files --manifest clips.jsonl --config configs/2p7b.json --out s3://bucket/mine

`scenes` and `files` write the folders OUT/audio and OUT/music, the streams of a run's configuration. They appear when
everything is written and was read back. `files` can be stopped or killed at any time, on any number of ranks; the same
command resumes. docs/data.md describes the manifest, the filters and the output."""

FILES = """a manifest has one JSON object per line:
  {"audio": "wav/0001.wav", "captions": ["a dog barks twice"], "category": {"dog": 2}}
  {"video": "clips/7.mp4", "start": 30, "end": 50, "domain": "music", "genre": "jazz", "instruments": ["piano"]}

Paths are absolute or relative to the manifest, or addresses (https://, s3://). FFmpeg decodes any format, rate and
length; long files are cut into clips. Missing captions are written from category, SED and time_relation, or for music
from genre, mood, instruments and tempo. Damaged, missing and silent media are skipped, listed in OUT/rejected.jsonl and
counted in OUT/prepare_report.html. --filters FILE.json rejects more (docs/data.md).

OUT is a folder, or an address in a bucket (s3://BUCKET/FOLDER; credentials and S3_ENDPOINT_URL are read from the
environment). Started by srun, torchrun or deepspeed, the ranks share the work and communicate through OUT only."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=raw)
    kinds = parser.add_subparsers(dest="kind", required=True)
    scenes = kinds.add_parser("scenes", help="render procedural scenes", formatter_class=raw)
    scenes.add_argument("--clips", type=int, default=4000, help="number of clips (default %(default)s)")
    scenes.add_argument(
        "--music-share", type=float, default=0.4, metavar="SHARE", help="share of music (default %(default)s)"
    )
    files = kinds.add_parser("files", help="encode the files of a manifest", epilog=FILES, formatter_class=raw)
    files.add_argument("--manifest", type=Path, required=True, help="JSON lines, one file or segment per line")
    config = "run configuration with the encoders, model.codec and model.video"
    files.add_argument("--config", type=Path, required=True, help=config)
    # Scenes fit one codec only.
    scenes.add_argument(
        "--config", type=Path, default=Path("configs/tiny.json"), help=f"{config} (default %(default)s)"
    )
    files.add_argument(
        "--filters", type=Path, help="JSON file of filters (default: keep all that is intact and not silent)"
    )
    files.add_argument(
        "--limit", type=float, default=1800, metavar="SECONDS",
        help="give a file up after this time without a clip (default %(default)g)",
    )  # fmt: skip
    files.add_argument(
        "--unreachable", type=int, default=10, metavar="COUNT",
        help="stop after this many unreachable addresses in a row, 0 for never (default %(default)s)",
    )  # fmt: skip
    manifest_commands.add_private(files)
    files.add_argument("--device", help="device of the encoders (default: this rank's GPU, else the CPU)")
    files.add_argument("--out", required=True, help="folder or address in a bucket; new, or of the same command")
    scenes.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    cli.add_local_rank(parser)
    for kind in (scenes, files):
        cli.add_overrides(kind)
        kind.add_argument("--seed", type=int, default=0, help="seed of scenes and captions (default %(default)s)")
        kind.add_argument(
            "--workers",
            type=int,
            default=cores(),
            help="processes; the result does not depend on them (default: cores of this rank, here %(default)s)",
        )
    manifest_commands.add(kinds)
    return parser.parse_args(argv)


def cores() -> int:
    """Cores of this rank: what Slurm assigns or binds it to, else its share of the machine's."""
    given, seen = os.environ, len(os.sched_getaffinity(0))
    if "SLURM_CPUS_PER_TASK" in given:
        return int(given["SLURM_CPUS_PER_TASK"])
    if seen < int(given.get("SLURM_CPUS_ON_NODE", "0")):
        return seen
    tasks = re.findall(r"(\d+)(?:\(x\d+\))?(?:,|$)", given.get("SLURM_STEP_TASKS_PER_NODE", ""))  # as 8(x3),2
    ranks = given.get("LOCAL_WORLD_SIZE") or max(map(int, tasks), default=1)
    return max(1, seen // int(ranks))


def main() -> int:
    """Exits with 0 if at least one clip was written, else with a sentence that says why."""
    args = parse()
    if hasattr(args, "act"):
        return cli.run(lambda: args.act(args))
    # Worker processes import this file again, so slow imports that only the parent needs stand here.
    from audiox_trainer.trainer.core.config import load_pretrain_config

    def scenes() -> None:
        from audiox_trainer.trainer.prepare.prepare_scenes import prepare_scenes

        model = load_pretrain_config(args.config, args.set).model
        print(f"{args.out}: {prepare_scenes(args.out, model, args.clips, args.seed, args.music_share, args.workers)}")

    def files() -> None:
        from audiox_trainer.trainer.core.config_reader import parse_file
        from audiox_trainer.trainer.data.storage import scratch_folder
        from audiox_trainer.trainer.prepare.filters import FiltersConfig
        from audiox_trainer.trainer.prepare.prepare_files import PrepareRank, prepare_files

        model = load_pretrain_config(args.config, args.set).model
        filters = parse_file(FiltersConfig, args.filters, ()) if args.filters else FiltersConfig()
        cli.set_compile_cache(scratch_folder(args.out))
        place = replace(
            PrepareRank.from_environment(args.device),
            limit=args.limit, unreachable=args.unreachable, allow_private=args.private_addresses,
        )  # fmt: skip
        summary = prepare_files(args.out, model, args.manifest, args.seed, args.workers, filters, place)
        if place.rank == 0:
            print(f"{args.out}: {summary}")

    return cli.run(scenes if args.kind == "scenes" else files)


if __name__ == "__main__":
    sys.exit(main())
