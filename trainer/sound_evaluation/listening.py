"""A listening test: people rate anonymous sounds from 1 to 100 in overall quality (OVL) and relevance to the prompt
(REL), as in the paper's user study.

    OUT/index.html      the page; it needs no server and no network
    OUT/media/          the sounds under random names
    KEY                 which sound is whose; not for listeners

The page hands every listener a file of answers to send back.
"""

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from pydantic import Field

from ...models import strict
from ..core.english import amount, complaint_list
from ..core.files import atomic_output, hash_json, write_json
from ..pages.render import render
from ..pages.tables import Cell, Table
from ..scorers.statistics import bootstrap_interval, mark_significant, paired_difference
from .folders import EvaluatedPrompt, SoundFolder, find_sounds, read_evaluated_prompts

REFERENCE = "reference"  # the name of the true sounds among the systems
PICTURES = {".mp4", ".mov", ".mkv", ".webm"}
RATINGS = {"ovl": "OVL", "rel": "REL"}
Points = Annotated[int, Field(ge=1, le=100)]


@dataclass(frozen=True)
class KeyItem:
    """Whose sound of which prompt it is."""

    id: str
    system: str
    prompt: str


@dataclass(frozen=True)
class Key:
    """The key of a listening test."""

    study: str  # a hash of the ids
    systems: tuple[str, ...]
    items: tuple[KeyItem, ...]


@dataclass(frozen=True)
class Rating:
    """What a listener gave a sound."""

    id: str
    ovl: Points
    rel: Points


@dataclass(frozen=True)
class Answers:
    """The file that the page hands a listener."""

    study: str
    listener: str
    answers: tuple[Rating, ...]


def make_study(
    folders: Sequence[Path], prompts: Path, out: Path, key: Path, count: int | None, seed: int, title: str
) -> Key:
    """Writes the page and its sounds into the new folder `out`, and `key` elsewhere. `count` prompts are drawn by
    `seed` (None: all); true sounds take part where the prompts name them.

    Raises ValueError where a sound is missing, belongs to no prompt or cannot be decoded, or `key` exists or lies in
    `out`.
    """
    if key.exists() or key.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"--key {key}: it exists, or lies where listeners see it; name a new file outside of {out}")
    chosen = _choose(read_evaluated_prompts(prompts), count, seed)
    systems = [find_sounds(folder, chosen[1]) for folder in folders]
    places = _places(chosen[0], systems)
    ids = random.Random(f"{seed} {[str(path) for _, _, path in places]}")
    items = [KeyItem(f"{ids.getrandbits(64):016x}", system, prompt.id) for system, prompt, _ in places]
    names = tuple(dict.fromkeys(item.system for item in items))
    found = Key(hash_json({"ids": sorted(item.id for item in items)}), names, tuple(items))
    with atomic_output(out) as partial:
        (partial / "media").mkdir(parents=True)
        shown = []
        for item, (_, prompt, path) in zip(items, places, strict=True):
            shown.append({"id": item.id, "text": prompt.text, "media": _put(path, partial / "media", item.id)})
        shown.sort(key=lambda each: str(each["id"]))
        (partial / "index.html").write_text(render("listening.html", title=title, study=found.study, items=shown))
        write_json(key, strict.to_dict(found))
    return found


def _choose(
    prompts: list[EvaluatedPrompt], count: int | None, seed: int
) -> tuple[list[EvaluatedPrompt], list[EvaluatedPrompt]]:
    """The drawn prompts in their order, and all."""
    if count is not None and not 0 < count <= len(prompts):
        raise ValueError(f"--count {count}: must be from 1 to {len(prompts)}, the number of prompts")
    drawn = sorted(random.Random(seed).sample(range(len(prompts)), count or len(prompts)))
    return [prompts[i] for i in drawn], prompts


def _places(
    prompts: Sequence[EvaluatedPrompt], systems: Sequence[SoundFolder]
) -> list[tuple[str, EvaluatedPrompt, Path]]:
    """Every sound with its system and prompt. Raises ValueError where one is missing."""
    missing = [f"{s.name} has no sound for {p.id}" for s in systems for p in prompts if p.id not in s.sounds]
    if missing:
        raise ValueError(complaint_list(missing, f"{amount(len(missing), 'sound')} of the drawn prompts are missing"))
    if len({s.name for s in systems} | {REFERENCE}) != len(systems) + 1:
        raise ValueError(f"{[s.name for s in systems]}: folders need different names, and none is {REFERENCE!r}")
    places = [(s.name, p, s.sounds[p.id]) for p in prompts for s in systems]
    return places + [(REFERENCE, p, p.reference) for p in prompts if p.reference]


def _put(path: Path, folder: Path, name: str) -> str:
    """Copies a film, and decodes a sound into a flac without its name or tags. Returns the path for the page."""
    if path.suffix.lower() in PICTURES:
        shutil.copyfile(path, folder / f"{name}{path.suffix.lower()}")
        return f"media/{name}{path.suffix.lower()}"
    try:
        wave, rate = soundfile.read(path, always_2d=True)
        soundfile.write(folder / f"{name}.flac", wave, rate, subtype="PCM_24")
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: {error}; give wav, flac, ogg or mp3, or films as mp4, mov, mkv or webm") from None
    return f"media/{name}.flac"


def read_study(key: Path, files: Sequence[Path], seed: int = 0) -> dict[str, Any]:
    """The report: for each system the mean ratings over listeners and prompts, with 95 % intervals over prompts, and
    differences from the first system.

    Raises ValueError where a file is no file of answers, is of another test, rates an unknown sound or one twice, a
    listener is there twice, or a sound was rated by nobody.
    """
    known: Key = _read(Key, key)
    answers = [_read(Answers, file) for file in files]
    _check(known, list(zip(files, answers, strict=True)))
    results: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for field, name in RATINGS.items():
        means = _prompt_means(known, answers, field)
        for system, values in zip(known.systems, means, strict=True):
            low, high = bootstrap_interval(values, seed)
            results.append({"system": system, "rating": name, "mean": float(values.mean()), "low": low, "high": high})
        for system, values in zip(known.systems[1:], means[1:], strict=True):
            about = {"system": system, "against": known.systems[0], "rating": name}
            differences.append(about | vars(paired_difference(means[0], values, seed)))
    mark_significant(differences)
    rated = {each.listener: len(each.answers) for each in answers}
    prompts = len({item.prompt for item in known.items})
    return {"study": known.study, "prompts": prompts, "rated": rated, "results": results, "differences": differences}


def _prompt_means(key: Key, answers: Sequence[Answers], field: str) -> NDArray[np.float64]:
    """The mean rating of each sound over its listeners, (systems, prompts). Raises ValueError where it has none."""
    place = {item.id: (key.systems.index(item.system), item.prompt) for item in key.items}
    prompts = list(dict.fromkeys(item.prompt for item in key.items))
    sums = np.zeros((2, len(key.systems), len(prompts)))
    for each in answers:
        for rating in each.answers:
            system, prompt = place[rating.id]
            sums[:, system, prompts.index(prompt)] += getattr(rating, field), 1
    unrated = np.argwhere(sums[1] == 0)
    if len(unrated):
        system, prompt = unrated[0]
        raise ValueError(
            f"nobody has rated the sound of {key.systems[system]} for {prompts[prompt]}, and "
            f"{amount(len(unrated) - 1, 'other')}; wait for further answers"
        )
    return np.asarray(sums[0] / sums[1])


def _read(kind: type[Any], path: Path) -> Any:
    try:
        return strict.parse(kind, strict.parse_json(path.read_bytes()))
    except (ValueError, OSError) as error:
        what = "a key that `listen.py make` wrote" if kind is Key else "a file that the page of a listening test saved"
        raise ValueError(f"{path}: not {what} ({error})") from None


def _check(key: Key, answers: Sequence[tuple[Path, Answers]]) -> None:
    ids, listeners = {item.id for item in key.items}, dict[str, Path]()
    for path, each in answers:
        if each.study != key.study:
            raise ValueError(f"{path}: answers of another listening test than that of the key; leave it out")
        rated = [rating.id for rating in each.answers]
        if wrong := [name for name in rated if name not in ids or rated.count(name) > 1]:
            raise ValueError(f"{path}: the sound {wrong[0]} is unknown, or rated twice; ask the listener to save again")
        if first := listeners.get(each.listener):
            raise ValueError(f"{path}: {first} is of the same listener, {each.listener}; give the later one alone")
        listeners[each.listener] = path


def study_tables(report: dict[str, Any]) -> list[Table]:
    rated = report["rated"].values()
    rows = [
        [Cell(name), *[_cell(row) for row in report["results"] if row["system"] == name]]
        for name in dict.fromkeys(row["system"] for row in report["results"])
    ]
    note = (
        f"{amount(len(rated), 'listener')} rated {min(rated)} to {max(rated)} sounds of {report['prompts']} prompts "
        f"from 1 to 100. 95 % bootstrap intervals over prompts, of which each counts with its listeners' mean."
    )
    tables = [Table("Listening test", note, ("", *(f"{name} ↑" for name in RATINGS.values())), rows)]
    differences = [
        [
            Cell(f"{row['system']} − {row['against']}"),
            Cell(row["rating"]),
            Cell(f"{row['value']:+.1f}", f"{row['low']:+.1f} to {row['high']:+.1f}"),
            Cell(f"{row['p_holm']:.3f}"),
            Cell("yes" if row["significant"] else "no"),
        ]
        for row in report["differences"]
    ]
    note = f"On the same prompts; p after {amount(len(differences), 'comparison')} (Holm)."
    tables.append(Table("Differences", note, ("", "rating", "difference", "p", "significant"), differences))
    return [table for table in tables if table.rows]


def _cell(row: dict[str, Any]) -> Cell:
    return Cell(f"{row['mean']:.1f}", f"{row['low']:.1f} to {row['high']:.1f}")
