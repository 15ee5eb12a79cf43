"""The table of a preparation's throughput has every stage, by kind of media. Its measurements mean nothing here."""

import json

import numpy as np
import pytest
import soundfile

from audiox_trainer.launch import bench_throughput
from tests.helpers.media_files import film
from tests.helpers.small_config import small_config

pytestmark = pytest.mark.slow

STAGES = [
    "scan", "segment --at time", "segment --at silences", "segment --at scenes", "filter", "filter --no-duplicates",
    "files: decoding and cutting", "files: codec", "files: images and motion", "files: codec, images and motion",
]  # fmt: skip


def sound(path):
    soundfile.write(path, 0.1 * np.random.default_rng(0).normal(size=(44100 * 3, 2)), 44100)


def test_every_stage_has_a_row(tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    sound(media / "a.flac")
    film(media / "b.mp4", 2, sound=0.1 * np.random.default_rng(1).normal(size=44100 * 2).astype(np.float32))
    result = bench_throughput.measure(small_config(None), False, 1, 2, 3.0, media)
    rows = {row["stage"]: row for row in result["rows"]}
    assert list(rows) == STAGES and result["files"] == {"sound": 1, "film": 1}
    for name, row in rows.items():
        kinds = ["film"] if "images" in name else ["sound", "film"]
        assert set(row) == {"stage", *kinds, *(f"{kind}_low" for kind in kinds)}  # no GPU here
        assert all(0 < row[f"{kind}_low"] <= row[kind] for kind in kinds)
    assert rows["scan"]["sound"] > rows["segment --at time"]["sound"]  # which decodes
    lines = bench_throughput.summary_lines(result)
    assert len(lines) == 1 + len(STAGES) and "core hour" in lines[0]
    json.dumps(result)


def test_media_of_one_kind_leave_the_others_column_empty(tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    sound(media / "a.flac")
    rows = bench_throughput.measure(small_config(None), False, 1, 1, 3.0, media)["rows"]
    assert "film" not in rows[0] and rows[1]["sound"] > 0 and "film" not in rows[1]


def test_media_that_cannot_be_read_are_refused(tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    soundfile.write(media / "a.wav", np.zeros(0), 44100)
    with pytest.raises(ValueError, match=r"nothing of .*a\.wav and the like could be read; give media"):
        bench_throughput.measure(small_config(None), False, 1, 1, 3.0, media)


def test_media_are_made_where_none_are_given():
    result = bench_throughput.measure(small_config(None), False, 1, 1, 1.0, None)
    rows = {row["stage"]: row for row in result["rows"]}
    decoding = rows["files: decoding and cutting"]
    assert result["files"] == {"sound": 1, "film": 1} and decoding["film"] < decoding["sound"]  # it has pictures
