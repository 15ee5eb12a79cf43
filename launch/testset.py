"""Turn a published list and a folder of its media into prompts for generation and evaluation, and a manifest.

examples:
  python launch/testset.py audiocaps --list test.csv --media audiocaps/test --out sets/audiocaps --leave-out
  python launch/testset.py vggsound --list vggsound.csv --media vggsound --captions captions.jsonl --out sets/vggsound
  python launch/testset.py avvp --list AVVP_test_pd.csv --media LLP --mask 3-7 --out sets/avvp
  python launch/testset.py audiotime --list AudioTime/test/*/*_captions.json --media AudioTime/test --out sets/audiotime

OUT has a file of prompts for each task (T2A.jsonl, V2A.jsonl, …), each with its true sound, for launch/generate.py and
launch/evaluate.py; manifest.jsonl for launch/prepare.py; and summary.json with clips and hours next to the paper's.
"""

import argparse
import sys
from pathlib import Path

from audiox_trainer.launch.set_command import add_source
from audiox_trainer.trainer.core import cli

NAMES = ("audiocaps", "vggsound", "musiccaps", "v2m", "avvp", "audiotime", "clotho", "wavcaps")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add_source(parser, NAMES, "test")
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write; must not exist")
    add("--clip", type=float, default=9.98, help="seconds of a clip of the weights (default: %(default)s)")
    add("--mask", help="START-END in seconds: also prompts for inpainting, with this hole")
    add("--prefix", type=float, help="seconds: also prompts for completion, which are given this beginning")
    return parser.parse_args(argv)


def run(a: argparse.Namespace) -> None:
    from audiox_trainer.trainer.pages.tables import as_text
    from audiox_trainer.trainer.sets.listed_media import ListSource, summary_table
    from audiox_trainer.trainer.sets.test_sets import SetOptions, make_test_set

    if not 0 < a.clip <= 3600:
        raise ValueError(f"--clip {a.clip:g}: must be above 0 seconds, and at most 3600")
    source = ListSource(tuple(a.list), a.media, a.captions, a.split, a.leave_out)
    summary = make_test_set(a.name, source, SetOptions(a.out, a.clip, a.mask, a.prefix))
    print(as_text(summary_table(summary, "prompts")))
    print(f"\n{a.out}")


def main() -> int:
    arguments = parse()
    return cli.run(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
