"""The embedded data set: the content of a procedural clip, drawn from a seed. `synth.py` renders it.

A clip lasts 2.048 s. An audio scene has one to five events that do not overlap. In a music scene one instrument plays a
pattern at one of three tempi. Annotations have the fields of the paper's appendix A-A 2.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.tasks import DOMAINS
from .scene_captions import order_phrase

SAMPLE_RATE = 8000  # Hz
SAMPLES = 16384
SECONDS = SAMPLES / SAMPLE_RATE

# Shortest and longest natural duration in seconds. Five of the longest (sirens) must still fit into a clip.
DURATIONS: dict[str, tuple[float, float]] = {
    "bell": (0.20, 0.60),
    "kick": (0.14, 0.24),
    "snare": (0.14, 0.26),
    "whistle": (0.20, 0.70),
    "siren": (0.24, 0.80),
    "buzzer": (0.20, 0.70),
    "horn": (0.20, 0.70),
    "bird": (0.20, 0.70),
    "dog": (0.16, 0.30),
    "hiss": (0.20, 0.70),
    "laser": (0.20, 0.60),
}
EXTRA_CATEGORIES: tuple[str, ...] = ("laser",)  # only in scenes that are asked for it, so that a model can be new to it
AUDIO_CATEGORIES: tuple[str, ...] = tuple(name for name in DURATIONS if name not in EXTRA_CATEGORIES)
INSTRUMENTS: tuple[str, ...] = ("piano", "flute", "organ", "guitar")
TEMPI: tuple[int, ...] = (100, 160, 250)  # beats per minute; no two have a ratio near 2
GENRES: tuple[str, ...] = ("march", "waltz", "jazz")
MOODS: dict[str, tuple[int, int, int]] = {"happy": (0, 4, 7), "sad": (0, 3, 7)}  # semitones of the triad

MIN_GAP = 0.16  # seconds of silence between events: two whole latent frames, so that repeated sounds can be counted
EVENNESS = 4.0  # concentration of the Dirichlet distribution of the pauses between events; 1 is fully random
HEAD, TAIL = 0.03, 0.05  # seconds kept free at the ends of a clip
MAX_EVENTS = 5

# One kind per prompt type of T2A-bench (appendix A-C), and mixtures such as "a bell, then two kicks".
SCENE_KINDS: tuple[str, ...] = ("categories", "count", "order", "single", "mixture")
KIND_SHARES: tuple[float, ...] = (0.25, 0.35, 0.2, 0.1, 0.1)  # of the kinds; counting is the hardest to learn
COUNT_SHARES: tuple[float, ...] = (
    0.1,
    0.15,
    0.2,
    0.25,
    0.3,
)  # of one to five "categories"; many are harder


@dataclass(frozen=True)
class SoundEvent:
    """One sound of a category in `DURATIONS`, from onset to offset in seconds."""

    category: str
    onset: float
    offset: float


@dataclass(frozen=True)
class Scene:
    """The content of a clip. Audio scenes have events; music scenes have the four musical fields and no events.

    `seed` decides everything that the annotation does not say: levels, pitches, note choices, background.
    """

    domain: str
    events: tuple[SoundEvent, ...]
    instrument: str
    tempo: int
    genre: str
    mood: str
    seed: int


@dataclass(frozen=True)
class Note:
    """One note: onset and offset in seconds, semitones above the root of the instrument, level, whether on a beat."""

    onset: float
    offset: float
    semitones: int
    level: float
    on_beat: bool


def draw_scene(seed: int, index: int, domain: str, extra: str = "") -> Scene:
    """Draw the `index`-th scene of a data set. The same arguments give the same scene. In an audio scene `extra`, one
    of `EXTRA_CATEGORIES`, takes the place of one of the categories.

    Raises:
        ValueError: `domain` is neither "audio" nor "music", or `extra` is unknown.
    """
    if domain not in DOMAINS:
        raise ValueError(f"domain is {domain!r}, must be 'audio' or 'music'")
    rng = np.random.default_rng([seed, index, DOMAINS.index(domain)])
    if domain == "audio":
        names = draw_categories(str(rng.choice(SCENE_KINDS, p=KIND_SHARES)), rng)
        return audio_scene(with_extra(names, extra, rng) if extra else names, rng)
    return Scene(
        domain="music",
        events=(),
        instrument=INSTRUMENTS[rng.integers(len(INSTRUMENTS))],
        tempo=TEMPI[rng.integers(len(TEMPI))],
        genre=GENRES[rng.integers(len(GENRES))],
        mood=tuple(MOODS)[rng.integers(len(MOODS))],
        seed=int(rng.integers(2**31)),
    )


def draw_categories(kind: str, rng: np.random.Generator) -> list[str]:
    """Draw the categories of a scene's events, in order of time, for one of `SCENE_KINDS`."""
    if kind == "single":
        return _distinct_categories(1, rng)
    if kind == "categories":
        return _distinct_categories(1 + int(rng.choice(MAX_EVENTS, p=COUNT_SHARES)), rng)
    if kind == "order":
        return _distinct_categories(int(rng.integers(2, 4)), rng)
    if kind == "count":
        return _distinct_categories(1, rng) * int(rng.integers(1, MAX_EVENTS + 1))
    groups = int(rng.integers(2, 4))
    # One to three of each, and at most MAX_EVENTS in all.
    counts = [1] * groups
    for _ in range(int(rng.integers(1, MAX_EVENTS + 1 - groups))):
        counts[rng.integers(groups)] += 1
    names = [name for name, count in zip(_distinct_categories(groups, rng), counts, strict=True) for _ in range(count)]
    if rng.random() < 0.3:
        rng.shuffle(names)
    return names


def with_extra(names: list[str], extra: str, rng: np.random.Generator) -> list[str]:
    """The same categories, with `extra` wherever a randomly chosen one of them was.

    Raises:
        ValueError: `extra` is not one of EXTRA_CATEGORIES.
    """
    if extra not in EXTRA_CATEGORIES:
        raise ValueError(f"extra category {extra!r}; allowed: {', '.join(EXTRA_CATEGORIES)}")
    chosen = names[rng.integers(len(names))]
    return [extra if name == chosen else name for name in names]


def audio_scene(categories: list[str], rng: np.random.Generator) -> Scene:
    """Place events of these categories in time, in this order, at least MIN_GAP seconds apart.

    Raises:
        ValueError: there are none, or more than MAX_EVENTS.
    """
    count = len(categories)
    if not 1 <= count <= MAX_EVENTS:
        raise ValueError(f"{count} events requested, a scene has 1 to {MAX_EVENTS}")
    shortest = np.array([DURATIONS[name][0] for name in categories])
    longest = np.array([DURATIONS[name][1] for name in categories])
    # Events of one category are equally long.
    lengths = {name: rng.random() for name in dict.fromkeys(categories)}
    durations = shortest + np.array([lengths[name] for name in categories]) * (longest - shortest)
    room = SECONDS - HEAD - TAIL - (count - 1) * MIN_GAP
    if count > 1:
        # Durations shrink towards the shortest ones until a random share of the room is silent.
        limit = max(float(shortest.sum()), room * rng.uniform(0.5, 0.9))
        excess = float(durations.sum()) - limit
        if excess > 0:
            durations -= (durations - shortest) * excess / float((durations - shortest).sum())
    # The slack goes to the pauses before, between and after the events; those between vary less.
    pauses = rng.dirichlet([1.0, *[EVENNESS] * (count - 1), 1.0])[:count] * (room - durations.sum())
    onsets = HEAD + np.cumsum(pauses) + np.concatenate(([0.0], np.cumsum(durations[:-1] + MIN_GAP)))
    events = tuple(
        SoundEvent(name, round(float(start), 3), round(float(start + length), 3))
        for name, start, length in zip(categories, onsets, durations, strict=True)
    )
    return Scene("audio", events, "", 0, "", "", int(rng.integers(2**31)))


def scene_notes(scene: Scene, preceding: bool = False) -> list[Note]:
    """The notes of a music scene, or of the clip that precedes it. The genre is the pattern: a march alternates root
    and fifth in short notes, a waltz strikes the root and answers twice higher up, jazz swings (an off-beat note after
    two thirds of the beat)."""
    rng = np.random.default_rng(scene.seed)
    period = 60.0 / scene.tempo
    root, third, fifth = MOODS[scene.mood]
    start = float(rng.uniform(0.02, 0.02 + min(period, 0.3))) + (SECONDS if preceding else 0)
    result: list[Note] = []
    for beat in range(math.ceil((0.02 - start) / period), math.floor((SECONDS - 0.1 - start) / period) + 1):
        onset = start + beat * period
        colour = int(rng.integers(2))
        if scene.genre == "march":
            pitch = (root, third, fifth, third)[beat % 4]
            result.append(Note(onset, onset + 0.5 * period, pitch, 0.9, True))
        elif scene.genre == "waltz":
            pitch = root - 12 if beat % 3 == 0 else (third, fifth)[colour]
            result.append(Note(onset, onset + 0.85 * period, pitch, 1.0 if beat % 3 == 0 else 0.7, True))
        else:
            result.append(Note(onset, onset + 0.6 * period, (root, third, fifth, third + 12)[beat % 4], 1.0, True))
            swing = onset + 0.667 * period
            if swing < SECONDS - 0.1:
                result.append(Note(swing, onset + 0.95 * period, (fifth, 12)[colour], 0.45, False))
    return [Note(n.onset, min(n.offset, SECONDS - 0.01), n.semitones, n.level, n.on_beat) for n in result]


def scene_annotation(scene: Scene) -> dict[str, Any]:
    """The annotation of a scene, with the fields of appendix A-A 2.

    Audio: caption, category (name -> count, in order of first appearance), SED (list of {"start", "end", "event"},
    seconds) and time_relation (the order as "bell, kick, kick"). Music: caption, genre, mood, instruments (a list)
    and tempo (beats per minute).
    """
    if scene.domain == "music":
        return {
            "caption": f"{scene.mood} {scene.genre} played on the {scene.instrument} at {scene.tempo} bpm",
            "genre": scene.genre,
            "mood": scene.mood,
            "instruments": [scene.instrument],
            "tempo": scene.tempo,
        }
    names = [event.category for event in scene.events]
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return {
        "caption": order_phrase(names),
        "category": counts,
        "SED": [{"start": event.onset, "end": event.offset, "event": event.category} for event in scene.events],
        "time_relation": ", ".join(names),
    }


def _distinct_categories(count: int, rng: np.random.Generator) -> list[str]:
    return [AUDIO_CATEGORIES[i] for i in rng.permutation(len(AUDIO_CATEGORIES))[:count]]
