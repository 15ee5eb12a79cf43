"""Media to shards: procedural scenes, or the files that a manifest names."""

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

`scenes` and `files` write the folders OUT/audio and OUT/music, each a stream for a run's configuration, which is one
when everything is written and has been read back. `files` may be stopped or killed at any time, on any number of
ranks: the same command goes on. docs/data.md has the manifest, the filters, and what lies where."""

FILES = """a manifest has one JSON object a line:
  {"audio": "wav/0001.wav", "captions": ["a dog barks twice"], "category": {"dog": 2}}
  {"video": "clips/7.mp4", "start": 30, "end": 50, "domain": "music", "genre": "jazz", "instruments": ["piano"]}

Paths are absolute or relative to the manifest; addresses (https://, s3://) do as well. Any format that FFmpeg reads, at
any rate and length; long files are cut into clips. Where captions are missing they are written from category, SED,
time_relation, or for music from genre, mood, instruments and tempo. What is damaged, missing or silent is left out,
listed in OUT/rejected.jsonl and counted in OUT/prepare_report.html; --filters FILE.json leaves out more (docs/data.md).

OUT may be a folder, or an address in a bucket (s3://BUCKET/FOLDER; credentials and S3_ENDPOINT_URL come from the
environment). Started by srun, torchrun or deepspeed, all ranks share the work; they meet in OUT alone."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=raw)
    kinds = parser.add_subparsers(dest="kind", required=True)
    scenes = kinds.add_parser("scenes", help="render procedural scenes", formatter_class=raw)
    scenes.add_argument("--clips", type=int, default=4000, help="clips in all (default %(default)s)")
    scenes.add_argument(
        "--music-share", type=float, default=0.4, metavar="SHARE", help="part that is music (default %(default)s)"
    )
    files = kinds.add_parser("files", help="encode the files of a manifest", epilog=FILES, formatter_class=raw)
    files.add_argument("--manifest", type=Path, required=True, help="JSON lines, one file or segment each")
    config = "run configuration whose model.codec and model.video encode"
    files.add_argument("--config", type=Path, required=True, help=config)
    # Scenes fit one codec only.
    scenes.add_argument(
        "--config", type=Path, default=Path("configs/tiny.json"), help=f"{config} (default %(default)s)"
    )
    files.add_argument(
        "--filters", type=Path, help="JSON file of what is kept (default: all that is intact and audible)"
    )
    files.add_argument(
        "--limit", type=float, default=1800, metavar="SECONDS",
        help="without a clip, after which a file is given up (default %(default)g)",
    )  # fmt: skip
    files.add_argument(
        "--unreachable", type=int, default=10, metavar="COUNT",
        help="addresses in a row without an answer at which to stop, 0 for never (default %(default)s)",
    )  # fmt: skip
    files.add_argument("--device", help="of the encoders (default: this rank's GPU, else the CPU, in the workers)")
    files.add_argument("--out", required=True, help="folder or address in a bucket; new, or of the same command")
    scenes.add_argument("--out", type=Path, required=True, help="folder to make; must not exist")
    cli.add_local_rank(parser)
    for kind in (scenes, files):
        kind.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a config value")
        kind.add_argument("--seed", type=int, default=0, help="of scenes and of captions (default %(default)s)")
        kind.add_argument(
            "--workers",
            type=int,
            default=cores(),
            help="processes; the result does not depend on it (default: one a core of this rank, here %(default)s)",
        )
    manifest_commands.add(kinds)
    return parser.parse_args(argv)


def cores() -> int:
    """Of this rank: what Slurm says with -c, or has bound it to; else its share of what all ranks of a machine see."""
    given, seen = os.environ, len(os.sched_getaffinity(0))
    if "SLURM_CPUS_PER_TASK" in given:
        return int(given["SLURM_CPUS_PER_TASK"])
    if seen < int(given.get("SLURM_CPUS_ON_NODE", "0")):
        return seen
    tasks = re.findall(r"(\d+)(?:\(x\d+\))?(?:,|$)", given.get("SLURM_STEP_TASKS_PER_NODE", ""))  # as 8(x3),2
    ranks = given.get("LOCAL_WORLD_SIZE") or max(map(int, tasks), default=1)
    return max(1, seen // int(ranks))


def main() -> int:
    """Exits with 0 when at least one clip was written, and otherwise with a sentence that says why not."""
    args = parse()
    if hasattr(args, "act"):
        return cli.run(lambda: args.act(args))
    # Worker processes import this file again; what only the parent needs (mosaicml-streaming takes seconds) is in here.
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
        place = replace(PrepareRank.from_environment(args.device), limit=args.limit, unreachable=args.unreachable)
        summary = prepare_files(args.out, model, args.manifest, args.seed, args.workers, filters, place)
        if place.rank == 0:
            print(f"{args.out}: {summary}")

    return cli.run(scenes if args.kind == "scenes" else files)


if __name__ == "__main__":
    sys.exit(main())
