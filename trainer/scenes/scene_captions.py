"""Write the short captions of procedural scenes, from their annotations alone.

The paper augments its captions from the same fields by a language model (appendix A-A 2): by category and count, time
stamps and order; for music by instrument, tempo, genre and mood. The names of scenes are regular nouns; for annotated
recordings see `manifest/annotation_captions.py`.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from ..core.english import article, join, number, plural

MAX_WORDS = 18
MAX_WORDS_TIMED = 22
# Captions per kind to store with a clip: more for what is harder to learn.
_STORED = {"category": 1, "count": 2, "order": 2, "time": 3, "music": 3}


def scene_captions(annotation: Mapping[str, Any], rng: np.random.Generator) -> list[str]:
    """All captions to store with a clip: the annotation's own first, then a few of each kind.

    Missing or empty fields, and orders such as "interleave", give no captions of their kind.
    """
    kinds = {
        "category": category_captions(annotation),
        "count": count_captions(annotation, rng),
        "order": order_captions(annotation, rng),
        "time": time_captions(annotation),
        "music": music_captions(annotation),
    }
    result = [annotation["caption"]] if annotation.get("caption") else []
    for kind, phrasings in kinds.items():
        result += [phrasings[i] for i in rng.permutation(len(phrasings))[: _STORED[kind]]]
    return list(dict.fromkeys(result))


def category_captions(annotation: Mapping[str, Any]) -> list[str]:
    """The sounds without numbers: "a bell and a siren", "kicks". They keep their order of first appearance, because a
    model that may choose the order repeats one sound and forgets another."""
    return _phrasings([_noun_phrase(name, count) for name, count in (annotation.get("category") or {}).items()])


def count_captions(annotation: Mapping[str, Any], rng: np.random.Generator) -> list[str]:
    """The number of each sound: "two kicks and a bell", "the sound of 3 bells". Uncounted sounds get none."""
    counts, digits = annotation.get("category") or {}, bool(rng.integers(2))
    result = _phrasings([_number_phrase(name, count, digits) for name, count in counts.items()])
    if len(counts) == 1:
        ((name, count),) = counts.items()
        if count is not None and count > 1:
            result.append(f"{article(name)} repeated {number(count, digits)} times")
    return _at_most(result, MAX_WORDS)


def order_captions(annotation: Mapping[str, Any], rng: np.random.Generator) -> list[str]:
    """The order of sounds: "a bell, then two kicks", "a bell followed by a kick". Needs two different sounds."""
    relation = annotation.get("time_relation") or ""
    names = [name.strip() for name in relation.split(",") if name.strip()]
    digits = bool(rng.integers(2))
    groups = [_number_phrase(name, len(list(run)), digits) for name, run in groupby(names)]
    if len(groups) < 2:
        return []
    result = [", then ".join(groups), " followed by ".join(groups), "first " + ", then ".join(groups)]
    if len(groups) == 2:
        result.append(f"{groups[1]} after {groups[0]}")
    return _at_most(result, MAX_WORDS)


def time_captions(annotation: Mapping[str, Any]) -> list[str]:
    """Start and end of each sound, in seconds with one decimal: "a siren from 0.4 to 1.2 seconds"."""
    events = annotation.get("SED") or []
    if not 1 <= len(events) <= 3:
        return []
    spans = [(article(e["event"]), f"{e['start']:.1f}", f"{e['end']:.1f}") for e in events]
    result = [
        join([f"{name} from {start} to {end}" for name, start, end in spans]) + " seconds",
        join([f"{name} between {start} and {end}" for name, start, end in spans]) + " seconds",
    ]
    if len(events) == 1:
        name, start, end = spans[0]
        result.append(f"{name} starts at {start} and ends at {end} seconds")
    return _at_most(result, MAX_WORDS_TIMED)


def music_captions(annotation: Mapping[str, Any]) -> list[str]:
    """Instrument, tempo, genre and mood: "fast piano music", "a flute melody at 180 bpm", "a sad waltz"."""
    instrument = join(list(annotation.get("instruments") or []))
    tempo, genre, mood = (annotation.get("tempo"), annotation.get("genre"), annotation.get("mood"))
    result = []
    if instrument and tempo:
        result += [f"{_tempo_word(tempo)} {instrument} music", f"{article(instrument)} melody at {tempo:.0f} bpm"]
    if instrument and genre:
        result += [f"{genre} music on the {instrument}"]
    if instrument and mood:
        result += [f"{article(mood)} {instrument} melody"]
    if instrument and mood and genre and tempo:
        result += [f"{_tempo_word(tempo)}, {mood} {genre} on the {instrument}"]
    if mood and genre and not instrument:
        result += [f"{mood} {genre} music"]
    return _at_most(result, MAX_WORDS)


def order_phrase(names: Sequence[str]) -> str:
    """Sounds in order of time, with repeated ones counted: "a bell, then two kicks"."""
    return ", then ".join(_number_phrase(name, len(list(run)), digits=False) for name, run in groupby(names))


def _noun_phrase(name: str, count: int | None) -> str:
    if count is None:
        return name
    return article(name) if count == 1 else plural(name)


def _number_phrase(name: str, count: int | None, digits: bool) -> str:
    if count is None or count == 1:
        return _noun_phrase(name, count)
    return f"{number(count, digits)} {plural(name)}"


def _tempo_word(tempo: float) -> str:
    return "slow" if tempo < 120 else "fast" if tempo > 200 else "moderate"


def _phrasings(things: list[str]) -> list[str]:
    if not things:
        return []
    body = join(things)
    return _at_most([body, f"the sound of {body}", f"{body} can be heard"], MAX_WORDS)


def _at_most(phrasings: list[str], words: int) -> list[str]:
    return [phrasing for phrasing in phrasings if len(phrasing.split()) <= words]
