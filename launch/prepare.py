"""Media to shards: procedural scenes, or the files that a manifest names."""

import argparse
import os
import sys
from pathlib import Path

from audiox_turbo.trainer import command
from audiox_turbo.trainer.data import manifest_commands

EPILOG = """examples:
  python launch/prepare.py scan recordings --out clips.jsonl
  python launch/prepare.py scenes --out data/scenes --clips 4000
  python launch/prepare.py files --manifest clips.jsonl --config configs/tiny.json --out data/mine

`scenes` and `files` write the folders OUT/audio and OUT/music, each a stream for a run's configuration. OUT appears
when everything is written and has been read back; a run that fails leaves nothing under that name."""

FILES = """a manifest has one JSON object a line:
  {"audio": "wav/0001.wav", "captions": ["a dog barks twice"], "category": {"dog": 2}}
  {"video": "clips/7.mp4", "start": 30, "end": 50, "domain": "music", "genre": "jazz", "instruments": ["piano"]}

Paths are absolute or relative to the manifest. Any format that FFmpeg reads will do, at any rate and length; long files
are cut into clips. Where captions are missing they are written from category, SED, time_relation, or for music from
genre, mood, instruments and tempo. What is damaged, missing or silent is left out and listed in OUT/rejected.jsonl."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; `arguments` instead of the process's own, for tests."""
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
    for kind in (scenes, files):
        kind.add_argument("--out", type=Path, required=True, help="folder to make; must not exist")
        kind.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a config value")
        kind.add_argument("--seed", type=int, default=0, help="of scenes and of captions (default %(default)s)")
        kind.add_argument(
            "--workers",
            type=int,
            default=len(os.sched_getaffinity(0)),
            help="processes; the result does not depend on it (default: one a core, here %(default)s)",
        )
    manifest_commands.add(kinds)
    return parser.parse_args(arguments)


def main() -> None:
    """Exits with 0 when at least one clip was written, and otherwise with a sentence that says why not."""
    args = parse()
    if hasattr(args, "act"):
        sys.exit(command.exit_code(lambda: args.act(args)))
    # Worker processes import this file again; what only the parent needs (mosaicml-streaming takes seconds) is in here.
    from audiox_turbo.trainer.config import load_config
    from audiox_turbo.trainer.data.prepare import prepare_files, prepare_scenes

    try:
        model = load_config(args.config, args.set).model
        if args.kind == "scenes":
            summary = prepare_scenes(args.out, model, args.clips, args.seed, args.music_share, args.workers)
        else:
            summary = prepare_files(args.out, model, args.manifest, args.seed, args.workers)
    except (ValueError, OSError) as error:
        raise SystemExit(f"prepare: {error}") from error
    print(f"{args.out}: {summary}")


if __name__ == "__main__":
    main()
