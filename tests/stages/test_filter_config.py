"""Filters of whole lines: words that a line may not have, and what a file of filters may not say."""

import json
from pathlib import Path

import pytest

from audiox_trainer.trainer.manifest.manifest import parse_entry
from audiox_trainer.trainer.stages.filter import FilterJudge
from audiox_trainer.trainer.stages.filter_config import LineFilters, read_filters, words_fault
from audiox_trainer.trainer.stages.stage import StageTask

WORDS = LineFilters(words={"title": ("interview", "breaking news"), "category": ("speech",), "SED": ("talk",)})


def fault(line, filters=WORDS):
    return words_fault(parse_entry("here", Path(), 1, {"audio": "none.wav", **line}), filters)


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ({"title": "An INTERVIEW with a bell"}, "title has 'INTERVIEW'"),
        ({"title": ["rain", "Breaking  News!"]}, "title has 'Breaking  News'"),
        ({"title": {"en": "interview"}}, "title has 'interview'"),
        ({"category": {"dog": 2, "speech": None}}, "category has 'speech'"),
        ({"SED": [{"start": 0, "end": 1, "event": "people talk"}]}, "SED has 'talk'"),
    ],
)
def test_a_word_that_a_line_may_not_have(line, detail):
    assert fault(line) == ("word", detail)


@pytest.mark.parametrize(
    "line",
    [
        {"title": "interviews"},  # another word
        {"title": "news, breaking"},
        {"title": 7},
        {"note": "interview"},  # another key
        {"captions": ["an interview"]},
        {"SED": [{"start": 0, "end": 1, "event": "dog"}]},
        {},
    ],
)
def test_other_words(line):
    assert fault(line) is None


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("audio", {"audio": "news/1.wav"}),
        ("captions", {"captions": ["rain", "the news"]}),
        ("caption", {"caption": "The news."}),
        ("genre", {"genre": "news", "domain": "music"}),
    ],
)
def test_every_key_of_a_line(key, line):
    assert fault(line, LineFilters(words={key: ("news",)}))


def test_words_need_no_decoding():
    """There is no such file, and nobody looks for it."""
    entry = parse_entry("here", Path(), 1, {"audio": "none.wav", "title": "interview"})
    (result,) = FilterJudge(WORDS)(StageTask(entry))
    assert [row.reason for row in result.left_out] == ["word"] and result.seconds == 0


PANNS = {"kind": "panns", "weights": "weights/panns"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": {"title": []}}, r"words\.title: \[\] is not allowed"),
        ({"words": {"title": ["?"]}}, r"words\.title\[0\]: '\?' is not allowed"),
        ({"scorers": [{"name": "music", "scorer": PANNS}]}, r"scorers\[0\]\.min: missing"),
        ({"scorers": [{"name": "", "scorer": PANNS, "min": 0}]}, r"scorers\[0\]\.name: '' is not allowed"),
        ({"scorers": [{"name": "a", "scorer": {"kind": "pans"}, "min": 0}]}, r"scorers\[0\]\.scorer.*'pans'"),
        (
            {"scorers": [{"name": "a", "scorer": {"kind": "panns"}, "min": 0}]},
            r"scorers\[0\]\.scorer\.weights: missing",
        ),
        (
            {"scorers": [{"name": "a", "scorer": PANNS, "metric": "IS", "classes": [1], "min": 0}]},
            r"scorers\[0\]\.metric: 'IS' next to classes; give one",
        ),
        (
            {"scorers": [{"name": "peak", "scorer": PANNS, "min": 0}]},
            "scorers: each needs a name of its own, none",
        ),
        (
            {"scorers": [{"name": "a", "scorer": PANNS, "min": 0, "domains": ["speech"]}]},
            r"scorers\[0\]\.domains\[0\]: 'speech' is not allowed; expected 'audio' or 'music'",
        ),
        ({"classifiers": []}, "classifiers: unknown key"),
    ],
)
def test_filters_that_cannot_be(tmp_path, changes, message):
    (tmp_path / "filters.json").write_text(json.dumps(changes))
    with pytest.raises(ValueError, match=rf"filters\.json: {message}"):
        read_filters(tmp_path / "filters.json")


def test_paths_start_from_the_file_if_they_exist_there(tmp_path):
    (tmp_path / "panns").mkdir()
    places = ["panns", "elsewhere/panns"]
    scorers = [{"name": p, "scorer": {"kind": "panns", "weights": p}, "classes": [0], "max": 1} for p in places]
    (tmp_path / "filters.json").write_text(json.dumps({"scorers": scorers}))
    found = read_filters(tmp_path / "filters.json").scorers
    assert [each.scorer.weights for each in found] == [str(tmp_path / "panns"), "elsewhere/panns"]
