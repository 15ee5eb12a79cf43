"""Sentences from an annotation: what they say, that they are English, and that a seed settles them."""

import random
import re

import numpy as np
import pytest

from audiox_trainer.trainer.manifest.annotation_captions import (
    SENTENCES_PER_KIND,
    annotation_captions,
    count_phrases,
    music_phrases,
    order_phrases,
    time_phrases,
)
from audiox_trainer.trainer.manifest.line_values import Origin

SED = [
    {"start": 0.0, "end": 2.0, "event": "dog"},
    {"start": 1.0, "end": 6.0, "event": "rain"},
    {"start": 7.04, "end": 8.0, "event": "dog"},
]


def drawn(given, annotation, seed=0):
    return list(annotation_captions(given, annotation, np.random.default_rng(seed)))


@pytest.mark.parametrize(
    ("counts", "phrase"),
    [
        ({"Dog": 2, "rain": None}, "two dogs and rain can be heard"),
        ({"dog barking": 3}, "dog barking three times can be heard"),
        ({"siren": None, "hour bell": 1, "ukulele": 1}, "a siren, an hour bell and a ukulele can be heard"),
        ({"small child": 4, "footsteps": 1}, "four small children and footsteps can be heard"),
        ({"glass": 12}, "12 glasses can be heard"),
        ({"bell": 3}, "a bell can be heard three times"),
        ({"rain": 2}, "you can hear rain twice"),
        ({"the Bell": 1}, "the recording contains a bell"),
    ],
)
def test_counts(counts, phrase):
    assert phrase in count_phrases(counts)


def test_each_has_its_source_and_kind():
    annotation = {"caption": "A dog.", "category": {"dog": 2}, "time_relation": "dog, bell"}
    annotation["extra"] = {"annotated": {"caption": "ears"}}
    origins = {"two dogs": Origin("writer", "count")}
    found = annotation_captions(["a label", "two dogs"], annotation, np.random.default_rng(0), origins)
    assert list(found.items())[:3] == [
        ("a label", ("manifest", "caption")),
        ("two dogs", ("writer", "count")),
        ("A dog.", ("ears", "caption")),
    ]
    assert list(found.values())[3:] == [("template", "count")] * 2 + [("template", "order")] * 2
    assert found.keys() == set(drawn(["a label", "two dogs"], annotation))


def test_times():
    first, *_ = time_phrases(SED)
    assert first == "a dog from 0.0 to 2.0 and from 7.0 to 8.0 seconds; rain from 1.0 to 6.0 seconds"
    assert "a dog and rain can be heard at the same time" in time_phrases(SED)
    assert "a dog can be heard from 0.0 to 2.0 seconds" in time_phrases(SED[:1])
    assert "you can hear a dog at 0.0 seconds and rain at 1.0 seconds" in time_phrases(SED[:2])
    assert time_phrases([]) == time_phrases(SED * 3) == []


@pytest.mark.parametrize(
    ("relation", "phrase"),
    [
        ("bell, kick, kick", "first a bell, then two kicks"),
        ("Bell -> kick", "a kick can be heard after a bell"),
        ("a dog bark then thunder", "a dog bark, followed by thunder"),
        ("bell, kick, rain", "a bell can be heard first, then a kick and finally rain"),
        ("interleave", "the sounds of a dog and speech interleave"),
        ("The sounds alternate.", "a dog and speech can be heard in turns"),
        ("overlapping", "a dog and speech can be heard at the same time"),
    ],
)
def test_order(relation, phrase):
    assert phrase in order_phrases(relation, ["dog", "speech"])


def test_an_order_of_one_is_none():
    assert order_phrases("dog, dog", ["dog"]) == order_phrases("interleave", ["dog"]) == order_phrases("", []) == []


def test_music():
    facts = {"genre": "jazz", "mood": "upbeat", "instruments": ["piano", "drums"], "tempo": 120.0}
    said = music_phrases(facts)
    assert "an upbeat jazz piece with piano and drums" in said
    assert "a fast, upbeat jazz piece at 120 BPM" in said and "the music features piano and drums" in said
    assert music_phrases({"genre": "electronic music"}) == ["an electronic piece", "this is electronic music"]
    assert "a moderately fast piece at 90 BPM" in music_phrases({"tempo": 90.0})


def test_every_kind_is_said_in_phrasings_that_a_seed_chooses():
    facts = {"category": {"dog": 2, "rain": None}, "SED": SED, "time_relation": "dog, rain, dog", "caption": "A dog."}
    texts = drawn(["a wet dog"], facts)
    assert texts[:2] == ["a wet dog", "A dog."] and len(texts) == 2 + 3 * SENTENCES_PER_KIND
    assert texts == drawn(["a wet dog"], facts)
    assert len({tuple(drawn([], facts, seed)) for seed in range(20)}) > 10


def test_a_bare_name_is_not_repeated():
    """Captions say what sounds; a count says more."""
    assert drawn(["a kick drum"], {"category": {"kick drum": None}}) == ["a kick drum"]
    assert len(drawn([], {"category": {"kick drum": None}})) == SENTENCES_PER_KIND
    assert len(drawn(["a kick drum"], {"category": {"kick drum": 2}})) == 1 + SENTENCES_PER_KIND
    assert drawn([], {}) == []


def test_whatever_is_annotated_becomes_english():
    draw = random.Random(0)
    names = [
        "dog",
        "Rain",
        "dog barking",
        "bus",
        "hour glass",
        "eagle",
        "child",
        "fly",
        "footsteps",
        "uniform",
        "church",
    ]
    for seed in range(300):
        chosen = draw.sample(names, draw.randint(1, 4))
        events = [{"start": (a := draw.uniform(0, 8)), "end": a + draw.uniform(0, 2), "event": n} for n in chosen]
        facts = {
            "category": {name: draw.choice([None, 1, 2, 7, 30]) for name in chosen},
            "SED": events,
            "time_relation": draw.choice([", ".join(draw.choices(chosen, k=4)), "interleave", "overlap"]),
            "mood": draw.choice(["eerie", "sad"]),
            "tempo": draw.uniform(40, 200),
        }
        for text in drawn([], facts, seed):
            assert text[0].isupper() or text[0].isdigit(), text
            assert text.endswith(".") and not text.endswith(".."), text
            assert not re.search(r"  | ,|\ba [aeio]|\ban [^aeioh]|\b(\w+) \1\b|None", text), text
