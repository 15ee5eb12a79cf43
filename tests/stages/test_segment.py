"""Lines are cut into segments: by time, where it is quiet, along scenes, with the annotation that is true of each."""

import json

import numpy as np
import pytest

from audiox_trainer.trainer.manifest.manifest import read_entries
from audiox_trainer.trainer.stages.curate import segment_manifest
from audiox_trainer.trainer.stages.measure import Measured
from audiox_trainer.trainer.stages.segment import Segmentation, cut
from audiox_trainer.trainer.stages.stage import StageWorkers
from tests.helpers.preparation import manifest, sound


def test_by_time():
    assert cut(Measured(25.5), Segmentation(10.0)) == [(0.0, 10.0), (10.0, 20.0), (20.0, 25.5)]
    assert cut(Measured(10.0), Segmentation(10.0)) == [(0.0, 10.0)]
    assert cut(Measured(0.4), Segmentation(10.0)) == [(0.0, 0.4)]


def test_where_it_is_quietest():
    """A segment of at most 10 s ends in the last third of these."""
    quiet = np.zeros(500)  # 25 s of 50 ms
    quiet[[60, 170, 360]] = -50
    found = cut(Measured(25.0, levels=quiet.tolist()), Segmentation(10.0, at="silences"))
    assert found == [
        (0.0, pytest.approx(8.525)),
        (pytest.approx(8.525), pytest.approx(18.025)),
        (pytest.approx(18.025), 25.0),
    ]


def test_along_scenes():
    """Five pictures per second; a scene longer than a segment is cut by time."""
    changes = np.zeros(124)
    changes[[14, 44]] = 90.0
    found = cut(Measured(25.0, changes=changes.tolist()), Segmentation(10.0, at="scenes"))
    assert found == [(0.0, 3.0), (3.0, 9.0), (9.0, 19.0), (19.0, 25.0)]


def test_a_segment_that_cannot_be():
    with pytest.raises(ValueError, match="shortest 3: must be above 0, and at most seconds, 2"):
        Segmentation(2.0, 3.0)


@pytest.mark.slow
def test_a_manifest(tmp_path, forkserver):
    sound(tmp_path / "long.flac", 25.4)
    sound(tmp_path / "short.flac", 2.0)
    events = [{"start": 1.0, "end": 2.0, "event": "dog"}, {"start": 9.5, "end": 11.0, "event": "bell"}]
    path = manifest(
        tmp_path,
        {"audio": "long.flac", "end": 20.5, "SED": events, "category": {"dog": 1, "bell": 1}, "kit": "x"},
        {"audio": "none.flac"},
        {"audio": "short.flac", "captions": ["a tone"], "time_relation": "tone"},
    )
    summary = segment_manifest(path, tmp_path / "new/clips.jsonl", Segmentation(), StageWorkers(2))
    assert str(summary).startswith("kept 3 lines (0.01 h) of 3 (0.01 h), left out 1 missing, 1 short rest; ")
    lines = [json.loads(line) for line in (tmp_path / "new/clips.jsonl").read_text().splitlines()]
    first, second, third = lines
    place = str(tmp_path / "long.flac")
    assert first == {
        "audio": place, "start": 0.0, "end": 10.0, "kit": "x", "category": {"dog": 1, "bell": 1},
        "SED": [events[0], {"start": 9.5, "end": 10.0, "event": "bell"}],
    }  # fmt: skip
    assert second == {
        "audio": place, "start": 10.0, "end": 20.0, "kit": "x", "category": {"bell": 1},
        "SED": [{"start": 0.0, "end": 1.0, "event": "bell"}],
    }  # fmt: skip
    assert third == {
        "audio": str(tmp_path / "short.flac"), "captions": ["a tone"], "time_relation": "tone", "start": 0.0, "end": 2.0
    }  # fmt: skip
    assert [entry.start for entry in read_entries(tmp_path / "new/clips.jsonl")] == [0.0, 10.0, 0.0]
    left_out = [json.loads(line) for line in (tmp_path / "new/clips.jsonl.left_out.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"], row["start"]) for row in left_out] == [
        (1, "short rest", 20.0),
        (2, "missing", None),
    ]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "clips.jsonl", "clips.jsonl.html", "clips.jsonl.left_out.jsonl"
    ]  # fmt: skip
