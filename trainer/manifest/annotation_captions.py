"""Write sentences about a recording from its annotation: sounds and how often, when, in which order; for music genre,
mood, instruments and tempo.

The paper uses a language model for this (section III-B, appendix A-A 2), as `captions/rewrite.py` does. Here a seed
chooses among templates.
Procedural scenes have shorter captions, in `scenes/scene_captions.py`.

Names may be any text. Countable ones get an article or a plural; others (rain, dog barking, footsteps) stay as they are
and are counted in times. No verb depends on the number of a name.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any

import numpy as np

from ..core.english import article, join, number, plural
from .line_values import TEMPLATE, Origin, caption_origin

SENTENCES_PER_KIND = 2
MAX_EVENTS = 6  # with more, a sentence of time stamps is unreadable
_UNCOUNTABLE = frozenset(
    "ambience applause audio breath chatter cheering fire gunfire hum laughter music noise rain silence singing sound "
    "speech static surf thunder traffic water weather wind".split()
)
_ARTICLE = re.compile(r"(?i)^(?:an?|the)\s+")
_IN_TURNS = re.compile(r"(?i)\b(?:interleav|alternat|in turns?\b)")
_TOGETHER = re.compile(r"(?i)\b(?:overlap|simultan|concurrent|at the same time|together)")
_NEXT = re.compile(r"\s*(?:,|;|->|→|\bthen\b|\bfollowed by\b)\s*")


def annotation_captions(
    given: Sequence[str],
    annotation: Mapping[str, Any],
    rng: np.random.Generator,
    origins: Mapping[str, Origin] = MappingProxyType({}),
) -> dict[str, Origin]:
    """All texts to store with a clip, each with its source and kind: the given ones, the annotation's caption, and
    SENTENCES_PER_KIND sentences per kind. Names without a count give sentences only if there is no other text."""
    texts = {text: origins.get(text, Origin()) for text in given}
    if annotation.get("caption"):
        texts.setdefault(annotation["caption"], caption_origin(annotation.get("extra", {}).get("annotated")))
    counts = annotation.get("category") or {}
    kinds = {
        "count": count_phrases(counts) if any(counts.values()) or not texts else [],
        "time": time_phrases(annotation.get("SED") or []),
        "order": order_phrases(annotation.get("time_relation") or "", list(counts)),
        "music": music_phrases(annotation),
    }
    for kind, phrasings in kinds.items():
        for i in rng.permutation(len(phrasings))[:SENTENCES_PER_KIND]:
            texts.setdefault(_sentence(phrasings[i]), Origin(TEMPLATE, kind))
    return texts


def count_phrases(counts: Mapping[str, int | None]) -> list[str]:
    """Sounds and how often: "two dogs and rain can be heard"."""
    if not counts:
        return []
    words, digits = (
        join([_noun_phrase(name, count, as_digits) for name, count in counts.items()]) for as_digits in (0, 1)
    )
    result = [f"{words} can be heard", f"the recording contains {words}", f"you can hear {digits}", f"{digits}"]
    if len(counts) == 1:
        ((name, count),) = counts.items()
        if count is not None:
            result.append(f"{_noun_phrase(name, None, False)} can be heard {_times(count, False)}")
    return list(dict.fromkeys(result))


def time_phrases(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Times of the events: "a siren can be heard from 0.4 to 1.2 seconds"."""
    if not 1 <= len(events) <= MAX_EVENTS:
        return []
    spans: dict[str, list[tuple[str, str]]] = {}
    for event in sorted(events, key=lambda event: event["start"]):
        spans.setdefault(event["event"], []).append((f"{event['start']:.1f}", f"{event['end']:.1f}"))
    parts = {name: _noun_phrase(name, None, False) for name in spans}
    from_to = [f"{parts[n]} {join([f'from {a} to {b}' for a, b in s])} seconds" for n, s in spans.items()]
    between = [f"{join([f'between {a} and {b}' for a, b in s])} seconds {parts[n]}" for n, s in spans.items()]
    first_at = [f"{parts[n]} at {join([a for a, _ in s])} seconds" for n, s in spans.items()]
    result = [_join_spans(from_to), f"{_join_spans(between)} can be heard", f"the recording has {_join_spans(from_to)}"]
    result.append(f"you can hear {join(first_at)}")
    if len(events) == 1:
        ((start, end),) = spans[events[0]["event"]]
        thing = parts[events[0]["event"]]
        result.append(f"{thing} can be heard from {start} to {end} seconds")
        result.append(
            f"{thing} begins at {start} seconds and ends at {end} seconds" if _is_countable(thing) else result[0]
        )
    overlapping = _overlapping_pair(events)
    if overlapping:
        result.append(f"{join([parts[name] for name in overlapping])} can be heard at the same time")
    return list(dict.fromkeys(result))


def order_phrases(relation: str, names: Sequence[str]) -> list[str]:
    """The order of sounds: "first a bell, then two kicks"; or that all `names` alternate or sound together."""
    if len(names) >= 2 and (_IN_TURNS.search(relation) or _TOGETHER.search(relation)):
        things = join([_noun_phrase(name, None, False) for name in names])
        if _IN_TURNS.search(relation):
            return [f"{things} can be heard in turns", f"the sounds of {things} interleave", f"{things}, interleaved"]
        return [f"{things} can be heard at the same time", f"the sounds of {things} overlap", f"{things}, all at once"]
    steps = [step for step in _NEXT.split(relation.strip()) if step]
    groups = [_noun_phrase(name, len(list(run)), False) for name, run in groupby(steps)]
    if len(groups) < 2:
        return []
    result = ["first " + ", then ".join(groups), ", followed by ".join(groups)]
    if len(groups) == 2:
        result += [f"{groups[0]} can be heard before {groups[1]}", f"{groups[1]} can be heard after {groups[0]}"]
    else:
        middle = ", then ".join(groups[1:-1])
        result.append(f"{groups[0]} can be heard first, then {middle} and finally {groups[-1]}")
    return result


def music_phrases(annotation: Mapping[str, Any]) -> list[str]:
    """Genre, mood, instruments, tempo: "an upbeat jazz piece with piano and drums"."""
    genre, mood, tempo = (annotation.get(key) for key in ("genre", "mood", "tempo"))
    instruments = join(list(annotation.get("instruments") or []))
    piece = " ".join(word for word in (mood, genre and genre.removesuffix(" music"), "piece") if word)
    result = []
    if genre or mood:
        result.append(f"{article(piece)}{f' with {instruments}' if instruments else ''}")
    if genre:
        result.append(f"this is {genre if genre.endswith('music') else genre + ' music'}")
    if mood:
        result.append(f"the mood of the music is {mood}")
    if instruments:
        result += [f"the music features {instruments}", f"music played on {instruments}"]
    if tempo:
        speed, rate = _tempo_words(tempo), f"{tempo:.0f} beats per minute"
        at_speed = article(f"{speed}, {piece}" if mood else f"{speed} {piece}")
        result += [f"the tempo is {speed}, {rate}", f"{at_speed} at {tempo:.0f} BPM"]
        if instruments:
            result.append(f"{instruments} at {article(speed)} tempo of {rate}")
    return result


def _noun_phrase(name: str, count: int | None, digits: bool | int) -> str:
    """A name with its count: "a dog", "three dogs", "rain", "dog barking twice"."""
    name = _ARTICLE.sub("", name.strip()) or name
    if name[1:2].islower():
        name = name[0].lower() + name[1:]
    if not _is_countable(name):
        return name if count is None or count == 1 else f"{name} {_times(count, digits)}"
    if count is None or count == 1:
        return article(name)
    return f"{number(count, bool(digits))} {plural(name)}"


def _join_spans(parts: list[str]) -> str:
    return "; ".join(parts) if any(" and " in part for part in parts) else join(parts)


def _is_countable(name: str) -> bool:
    last = name.split(" ")[-1].lower()
    return last not in _UNCOUNTABLE and not last.endswith("ing") and (not last.endswith("s") or last.endswith("ss"))


def _times(count: int, digits: bool | int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{number(count, bool(digits))} times")


def _overlapping_pair(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Two different events; the shorter one overlaps the other for at least half of its length."""
    for i, one in enumerate(events):
        for other in events[i + 1 :]:
            shared = min(one["end"], other["end"]) - max(one["start"], other["start"])
            shorter = min(one["end"] - one["start"], other["end"] - other["start"])
            if one["event"] != other["event"] and 0 < shorter <= 2 * shared:
                return [one["event"], other["event"]]
    return []


def _tempo_words(tempo: float) -> str:
    return "slow" if tempo < 80 else "moderately fast" if tempo < 120 else "fast" if tempo < 170 else "very fast"


def _sentence(phrase: str) -> str:
    return f"{phrase[0].upper()}{phrase[1:]}."
