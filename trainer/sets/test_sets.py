"""Test sets on a user's disk: a published list and a folder of media become prompts for each task, and a manifest.

OUT/T2A.jsonl, OUT/V2A.jsonl, …    prompts with their true sounds, for launch/generate.py and launch/evaluate.py
OUT/manifest.jsonl                 the same media for launch/prepare.py files
OUT/summary.json                   clips and hours, next to those of the paper's Table A.1
OUT/missing.jsonl                  clips of the list without media, where they are left out
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models import strict
from ..core.files import atomic_output, json_text, refuse_existing
from ..core.tasks import TASKS, Domain
from ..generation.prompts import Prompt
from .listed_media import (
    ListedMedia,
    ListSource,
    Media,
    difference,
    manifest_lines,
    read_listed_media,
    write_lines,
)
from .published_lists import ListedClip

CLIP = 9.98  # seconds that the networks of full size generate at once, rounded down
CLOSE = 1.04  # how many times as long as a clip a true sound may be and yet be generated as one


@dataclass(frozen=True)
class TestSet:
    """A set and what the paper tests on it: tasks, with the clips and hours of Table A.1 where it has them."""

    title: str
    domain: Domain
    tasks: dict[str, tuple[int, float] | None]
    note: str = ""

    __test__ = False  # no test class


SETS = {
    "audiocaps": TestSet("AudioCaps", "audio", {"T2A": (4875, 13.5), "inpainting": (4875, 13.5)}),
    "vggsound": TestSet(
        "VGGSound",
        "audio",
        dict.fromkeys(("T2A", "V2A", "TV2A"), (14_931, 41.5)),
        "The paper's texts are captions of its own (--captions); those here are the labels.",
    ),
    "musiccaps": TestSet("MusicCaps", "music", {"T2M": (5526, 15.4)}),
    "v2m": TestSet(
        "V2M-bench",
        "music",
        {"T2M": (3105, 9.0), "V2M": (300, 9.0), "TV2M": (300, 9.0), "completion": (300, 9.0)},
        "For T2M the paper has clips of 10 s; here the films are whole.",
    ),
    "avvp": TestSet("AVVP", "audio", {"V2A": (1120, 3.1), "TV2A": None, "inpainting": (1120, 3.1)}),
    "audiotime": TestSet("AudioTime", "audio", {"T2A": (2000, 5.5)}),
    "clotho": TestSet("Clotho", "audio", {"T2A": None}, "The paper has no figures on it."),
    "wavcaps": TestSet("WavCaps", "audio", {"T2A": None}, "The paper trains on it: 108.3k clips, 300.8 h."),
}


@dataclass(frozen=True)
class SetOptions:
    """The folder to write, and the options of its prompts. `mask` and `prefix` are the hole of an inpainting and the
    seconds that a completion is given, which the paper does not say; without them there are no such prompts."""

    out: Path
    clip: float = CLIP
    mask: str | None = None
    prefix: float | None = None


def make_test_set(name: str, source: ListSource, options: SetOptions) -> dict[str, Any]:
    """Writes the folder `options.out`, and returns the summary. Raises ValueError as `read_listed_media`."""
    test_set = SETS[name]
    _check_options(test_set, options)
    refuse_existing(options.out)
    listed = read_listed_media(name, source)
    prompts = _all_prompts(test_set, listed, options)
    summary = _summary(test_set, listed, prompts)
    with atomic_output(options.out) as partial:
        partial.mkdir(parents=True)
        for file, lines in prompts.items():
            write_lines(partial / f"{file}.jsonl", lines)
        write_lines(partial / "manifest.jsonl", manifest_lines(test_set.domain, listed))
        if listed.missing:
            write_lines(partial / "missing.jsonl", listed.missing)
        (partial / "summary.json").write_text(json_text(summary))
    return summary


def _all_prompts(test_set: TestSet, listed: ListedMedia, options: SetOptions) -> dict[str, list[dict[str, Any]]]:
    """Lines by the name of their file: a task, or a task with what it is given, as inpainting_A+V."""
    found: dict[str, list[dict[str, Any]]] = {}
    clips, media = listed.clips, listed.media
    for name in test_set.tasks:
        task = TASKS[name]
        if task.audio is None:
            found[name] = [line for clip in clips for line in _prompts(clip, media[clip.id], name, options)]
            continue
        given: dict[str, Any] | None = {"mask": options.mask} if options.mask and name == "inpainting" else None
        if options.prefix and name == "completion":
            given = {"prefix": options.prefix}
        if given:
            key, letter = ("audio", "A") if name == "inpainting" else ("continue_from", "M")
            for text, video in ((False, False), (True, False), (False, True), (True, True)):
                conditions = "+".join([letter, *(["T"] if text else []), *(["V"] if video else [])])
                found[f"{name}_{conditions}"] = [
                    line for clip in clips for line in _given_prompts(clip, media[clip.id], given, key, text, video)
                ]
    return {name: lines for name, lines in found.items() if lines}


def _check_options(test_set: TestSet, options: SetOptions) -> None:
    """Raises ValueError where an option would do nothing."""
    for option, value, task in (("--mask", options.mask, "inpainting"), ("--prefix", options.prefix, "completion")):
        if value is not None and task not in test_set.tasks:
            raise ValueError(f"{option}: {test_set.title} is not for {task}; leave it out")
    if options.prefix is not None and not options.prefix > 0:
        raise ValueError(f"--prefix {options.prefix:g}: must be above 0 seconds")


def _prompts(clip: ListedClip, media: Media, name: str, options: SetOptions) -> Iterator[dict[str, Any]]:
    """A clip's prompts of a task: one for each of its texts where the task has a text."""
    task = TASKS[name]
    if task.video and not media.video:
        return
    seconds = media.seconds if not options.clip < media.seconds <= CLOSE * options.clip else options.clip
    for text, out in _texts(clip) if task.text else [(None, clip.id)]:
        line: dict[str, Any] = {
            "task": name,
            "text": text,
            "video": str(media.video) if task.video else None,
            "out": f"{out}.wav",
        }
        line |= {"seconds": round(seconds, 3), "reference": str(media.sound)}
        yield _checked(line)


def _given_prompts(
    clip: ListedClip, media: Media, given: Mapping[str, Any], key: str, text: bool, video: bool
) -> Iterator[dict[str, Any]]:
    """A clip's prompt with a given sound: its first text and its video where they are wanted and there."""
    if (text and not clip.texts) or (video and not media.video):
        return
    line: dict[str, Any] = {**given, key: str(media.sound), "out": f"{clip.id}.wav", "reference": str(media.sound)}
    line["text"] = clip.texts[0] if text else None
    line["video"] = str(media.video) if video else None
    if "mask" not in given:
        line["seconds"] = round(media.seconds, 3)
    yield _checked(line)


def _checked(line: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that have a value. Raises ValueError where they make no prompt."""
    keys = {name: value for name, value in line.items() if value is not None}
    strict.parse(Prompt, keys)
    return keys


def _texts(clip: ListedClip) -> list[tuple[str, str]]:
    """Each text with the name of its sound."""
    if len(clip.texts) == 1:
        return [(clip.texts[0], clip.id)]
    return [(text, f"{clip.id}_{i}") for i, text in enumerate(clip.texts, start=1)]


def _summary(
    test_set: TestSet, listed: ListedMedia, prompts: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Clips and hours of each file of prompts, next to the paper's, with their difference as a sentence."""
    seconds = {str(each.sound): each.seconds for each in listed.media.values()}
    rows = []
    for name, lines in prompts.items():
        row: dict[str, Any] = {"prompts": name, "clips": len(lines)}
        row["hours"] = round(sum(seconds[line["reference"]] for line in lines) / 3600, 3)
        printed = test_set.tasks[name.partition("_")[0]]
        row |= {"paper_clips": printed[0] if printed else None, "paper_hours": printed[1] if printed else None}
        row["difference"] = difference(len(lines), printed[0]) if printed else "the paper has no number"
        rows.append(row)
    return {
        "set": test_set.title,
        "listed": len(listed.clips) + len(listed.missing),
        "rows": rows,
        "notes": [*listed.notes(), *filter(None, [test_set.note])],
    }
