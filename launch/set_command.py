"""The command of `launch/prepare.py` that turns published lists into manifests. Imports nothing slow."""

import argparse
from collections.abc import Sequence
from pathlib import Path

NAMES = ("audiocaps", "wavcaps", "audiotime", "vggsound", "audioset", "greatesthits", "mucaps", "v2m")

SET = """The training sets of the paper's Table A.1, from their published lists and a folder of their media, with clips
and hours next to the table's (docs/data.md). Long files are whole; segment cuts them.

  python launch/prepare.py set audiocaps --list train.csv --media audiocaps --out audiocaps.jsonl --leave-out
  python launch/prepare.py set wavcaps --list as_final.json --media WavCaps --out wavcaps.jsonl --leave-out
  python launch/prepare.py set audioset --list audioset_train_strong.tsv --media audioset --out strong.jsonl
  python launch/prepare.py set v2m --list V2M.txt --media V2M --out films.jsonl --leave-out"""


def add(kinds: argparse._SubParsersAction) -> None:
    """Add the command. `act` of the parsed arguments runs it."""
    raw = argparse.RawDescriptionHelpFormatter
    sets = kinds.add_parser("set", help="write a manifest of a published list", epilog=SET, formatter_class=raw)
    add_source(sets, NAMES, "train")
    sets.add_argument("--out", type=Path, required=True, help="manifest to write; must not exist")
    sets.set_defaults(act=_set)


def add_source(to: argparse.ArgumentParser, names: Sequence[str], split: str) -> None:
    """Add what says which clips a set has, and where their media are."""
    add = to.add_argument
    add("name", choices=names, help="the set")
    add("--list", nargs="+", type=Path, required=True, help="the published list, of audiotime all four")
    add("--media", type=Path, required=True, help="folder of the sounds and films, which may have folders of its own")
    add("--captions", type=Path, help='JSON lines {"id": …, "caption": …} in place of the list\'s own texts')
    add("--split", choices=("train", "test"), default=split, help="of vggsound (default: %(default)s)")
    add("--leave-out", action="store_true", help="go without clips whose media are not there")


def _set(a: argparse.Namespace) -> None:
    from audiox_trainer.trainer.pages.tables import as_text
    from audiox_trainer.trainer.sets.listed_media import ListSource, summary_table
    from audiox_trainer.trainer.sets.training_sets import make_training_set

    source = ListSource(tuple(a.list), a.media, a.captions, a.split, a.leave_out)
    summary = make_training_set(a.name, source, a.out)
    print(as_text(summary_table(summary, "tasks")))
    print(f"\n{a.out}")
