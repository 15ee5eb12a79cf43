"""Prepare shards from procedural scenes, or from the media files of a manifest."""

import argparse
import sys
from pathlib import Path

from audiox_trainer.launch import (
    caption_commands,
    manifest_commands,
    separate_command,
    set_command,
    stage_commands,
)
from audiox_trainer.launch.stage_commands import cores
from audiox_trainer.trainer.core import cli
from audiox_trainer.trainer.scenes.scene import EXTRA_CATEGORIES

EPILOG = """examples:
  python launch/prepare.py scan recordings --out clips.jsonl
  python launch/prepare.py set audiocaps --list train.csv --media audiocaps --out clips.jsonl --leave-out
  python launch/prepare.py segment --manifest all.jsonl --seconds 10 --out clips.jsonl
  python launch/prepare.py filter --manifest clips.jsonl --filters configs/filters.json --out kept.jsonl
  python launch/prepare.py separate --manifest kept.jsonl --model htdemucs --out-dir stems --out separated.jsonl
  python launch/prepare.py annotate --manifest separated.jsonl --endpoint URL --model MODEL --out annotated.jsonl
  python launch/prepare.py rewrite --manifest annotated.jsonl --endpoint URL --model MODEL --out captioned.jsonl
  python launch/prepare.py split --manifest clips.jsonl --out clips
  python launch/prepare.py scenes --out data/scenes --clips 4000
  python launch/prepare.py files --manifest clips.jsonl --config configs/tiny.json --out data/mine
  python launch/prepare.py files --manifest clips.jsonl --config configs/2p7b.json --out s3://bucket/mine --address auto

`annotate` reads separated.jsonl, or kept.jsonl without `separate`.

`scenes` and `files` write the folders OUT/audio and OUT/music, the streams of a run's configuration. They appear when
everything is written and was read back. `files` can be stopped or killed at any time, with all that works for it; the
same command resumes. docs/data.md describes the manifest, the filters and the output."""

FILES = """a manifest has one JSON object per line:
  {"audio": "wav/0001.wav", "captions": ["a dog barks twice"], "category": {"dog": 2}}
  {"video": "clips/7.mp4", "start": 30, "end": 50, "domain": "music", "genre": "jazz", "instruments": ["piano"]}

Paths are absolute or relative to the manifest, or addresses (https://, s3://). FFmpeg decodes any format, rate and
length; long files are cut into clips. Missing captions are written from category, SED and time_relation, or for music
from genre, mood, instruments and tempo. Damaged, missing and silent media are skipped, listed in OUT/rejected.jsonl and
counted in OUT/prepare_report.html. --filters FILE.json rejects more (docs/data.md).

OUT is a folder, or an address in a bucket (s3://BUCKET/FOLDER; credentials and S3_ENDPOINT_URL are read from the
environment). One machine works with all of its GPUs and cores. --address lets a Ray cluster work: auto for the one of
this machine, HOST:PORT for another. Started once per node by `srun launch/slurm/rank.sh`, or torchrun with one process
per node, the nodes make a cluster of their own (launch/slurm/prepare.sbatch)."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=raw)
    kinds = parser.add_subparsers(dest="kind", required=True)
    scenes = kinds.add_parser("scenes", help="render procedural scenes", formatter_class=raw)
    scenes.add_argument("--clips", type=int, default=4000, help="number of clips (default %(default)s)")
    scenes.add_argument(
        "--music-share", type=float, default=0.4, metavar="SHARE", help="share of music (default %(default)s)"
    )
    scenes.add_argument(
        "--extra", choices=EXTRA_CATEGORIES, default="", help="every audio scene has this sound, which is in none else"
    )
    scenes.add_argument("--pairs", action="store_true", help="music scenes have what precedes them (completion pairs)")
    files = kinds.add_parser("files", help="encode the files of a manifest", epilog=FILES, formatter_class=raw)
    files.add_argument("--manifest", type=Path, required=True, help="JSON lines, one file or segment per line")
    config = "run configuration with the encoders, model.codec and model.video"
    files.add_argument("--config", type=Path, required=True, help=config)
    # Scenes fit one codec only.
    scenes.add_argument(
        "--config", type=Path, default=Path("configs/tiny.json"), help=f"{config} (default %(default)s)"
    )
    files.add_argument(
        "--filters", type=Path, help="JSON file of limits for clips (default: keep all that is intact and not silent)"
    )
    stage_commands.add_workers(files)
    files.add_argument("--device", help="device of the encoders (default: all GPUs, else the CPU)")
    files.add_argument("--out", required=True, help="folder or address in a bucket; new, or of the same command")
    scenes.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    for kind in (scenes, files):
        cli.add_overrides(kind)
        kind.add_argument("--seed", type=int, default=0, help="seed of scenes and captions (default %(default)s)")
    scenes.add_argument(
        "--workers",
        type=cli.positive,
        default=cores(),
        help="processes; the result does not depend on them (default %(default)s)",
    )
    set_command.add(kinds)
    manifest_commands.add(kinds)
    stage_commands.add(kinds)
    separate_command.add(kinds)
    caption_commands.add(kinds)
    return parser.parse_args(argv)


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
        amounts = args.clips, args.seed, args.music_share, args.workers
        print(f"{args.out}: {prepare_scenes(args.out, model, *amounts, args.extra, args.pairs)}")

    def files() -> None:
        from audiox_trainer.trainer.core.config_reader import parse_file
        from audiox_trainer.trainer.data.storage import scratch_folder
        from audiox_trainer.trainer.prepare.filters import FiltersConfig
        from audiox_trainer.trainer.prepare.prepare_files import Workers, choose_devices, prepare_files
        from audiox_trainer.trainer.workers.cluster import launched

        model = load_pretrain_config(args.config, args.set).model
        filters = parse_file(FiltersConfig, args.filters, ()) if args.filters else FiltersConfig()
        cli.set_compile_cache(scratch_folder(args.out))
        with launched(args.address, args.workers) as address:
            if address is None:
                return  # this node has worked for the first one
            devices = choose_devices(args.device, address)
            workers = Workers(args.workers, devices, address, args.limit, args.unreachable, args.private_addresses)
            print(f"{args.out}: {prepare_files(args.out, model, args.manifest, args.seed, workers, filters)}")

    return cli.run(scenes if args.kind == "scenes" else files)


if __name__ == "__main__":
    sys.exit(main())
