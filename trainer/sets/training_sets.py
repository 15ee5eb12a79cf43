"""The training sets of the paper's Table A.1 on a user's disk: a published list and a folder of media become a
manifest, with clips and hours next to the table's.

OUT                  the manifest
OUT.missing.jsonl    clips of the list without media, where they are left out

Two sets of the table have no list: IF-caps-Pro consists of captions of VGGSound and AudioSet Strong, and one set is the
authors' own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.english import amount
from ..core.files import atomic_output, refuse_existing, remove
from ..core.tasks import Domain
from ..manifest.manifest import parse_entry
from ..stages.segment import Segmentation
from .listed_media import ListSource, difference, manifest_lines, read_listed_media, write_lines

ROUNDED = -2  # the table has clips in hundreds


@dataclass(frozen=True)
class TrainingSet:
    """A set with its row of Table A.1. Its clips are cut from longer files unless they are `whole`."""

    title: str
    domain: Domain
    tasks: str
    clips: int
    hours: float
    note: str = ""
    whole: bool = False


SETS = {
    "audiocaps": TrainingSet("AudioCaps", "audio", "T2A", 45_000, 125.1),
    "wavcaps": TrainingSet(
        "WavCaps", "audio", "T2A", 108_300, 300.8, "The table's clips are as many as those of as_final.json alone."
    ),
    "audiotime": TrainingSet(
        "AudioTime", "audio", "T2A", 20_000, 355.5, "20,000 clips of 10 s are 55.6 h; the table has 355.5."
    ),
    "vggsound": TrainingSet(
        "VGGSound",
        "audio",
        "V2A",
        176_900,
        491.4,
        "The texts are labels. For T2A and TV2A the paper has captions of its own (IF-caps-Pro, --captions).",
    ),
    "audioset": TrainingSet(
        "AudioSet Strong",
        "audio",
        "V2A",
        67_300,
        187.1,
        "The texts are labels. For T2A and TV2A the paper has captions of its own (IF-caps-Pro, --captions).",
    ),
    "greatesthits": TrainingSet(
        "Greatest Hits",
        "audio",
        "V2A, TV2A",
        1_000,
        2.7,
        "The table's clips are about as many as the films, with 10 s of each; here the films are whole.",
    ),
    "mucaps": TrainingSet("MUCaps", "music", "T2M", 22_000, 1273.6, whole=True),
    "v2m": TrainingSet(
        "V2M",
        "music",
        "T2M, V2M, TV2M",
        7_880_200,
        21_889.3,
        "The table counts a clip once per caption; by its row for completion 5,685,700 clips (15,793.6 h) differ.",
    ),
}


def make_training_set(name: str, source: ListSource, out: Path) -> dict[str, Any]:
    """Write the manifest `out`, and return the summary. Raises ValueError as `read_listed_media`, and where `out`
    exists or a line is wrong."""
    training_set = SETS[name]
    refuse_existing(out)
    listed = read_listed_media(name, source)
    lines = manifest_lines(training_set.domain, listed)
    for number, line in enumerate(lines, start=1):
        parse_entry(f"{out}:{number}", out.parent, number, line)
    with atomic_output(out) as partial:
        write_lines(partial, lines)
        others = out.with_name(f"{out.name}.missing.jsonl")
        if listed.missing:
            with atomic_output(others, replace=True) as missing:
                write_lines(missing, listed.missing)
        else:
            remove(others)  # of an earlier try
    seconds = {each.sound: each.seconds for each in listed.media.values()}
    clips = len(seconds) if training_set.whole else sum(map(segments_of, seconds.values()))
    texts = sum(len(line.get("captions", ())) for line in lines)
    near = training_set.clips if round(clips, ROUNDED) == training_set.clips else clips
    row = {
        "tasks": training_set.tasks,
        "clips": clips,
        "hours": round(sum(seconds.values()) / 3600, 1),
        "paper_clips": training_set.clips,
        "paper_hours": training_set.hours,
        "difference": difference(near, training_set.clips),
    }
    amounts = f"{amount(len(lines), 'line')} with {amount(texts, 'text')}."
    notes = [amounts, *listed.notes(), *filter(None, [training_set.note])]
    return {"set": training_set.title, "lines": len(lines), "texts": texts, "rows": [row], "notes": notes}


def segments_of(seconds: float) -> int:
    """Clips that launch/prepare.py segment makes of a file."""
    segmentation = Segmentation()
    whole, rest = divmod(seconds, segmentation.seconds)
    return int(whole) + (rest >= segmentation.shortest)
