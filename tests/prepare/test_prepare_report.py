"""The page and the counts of a preparation."""

import json
import re

import numpy as np
import pytest

from audiox_trainer.trainer.data.record import Record
from audiox_trainer.trainer.pages.charts import columns
from audiox_trainer.trainer.pages.render import environment
from audiox_trainer.trainer.prepare.counts import Counts, caption_terms, tasks_of
from audiox_trainer.trainer.prepare.encode import Rejection
from audiox_trainer.trainer.prepare.filters import FiltersConfig
from audiox_trainer.trainer.prepare.prepare_files import prepare_files
from tests.helpers.preparation import MODEL, manifest, sound


def record(domain="audio", video=False, captions=(), **annotation):
    rows = np.zeros((int(video), 4), np.float32)
    return Record("a", domain, rows, rows, rows, rows, list(captions), annotation, 2.0)


def test_tasks_that_a_record_serves():
    assert tasks_of(record()) == ["inpainting"]
    assert tasks_of(record(captions=["a bell"])) == ["T2A", "inpainting"]
    assert tasks_of(record("music", video=True, captions=["a waltz"])) == ["T2M", "V2M", "TV2M", "completion"]


def test_words_that_say_something_count_once_a_clip():
    assert caption_terms(["The sound of a Bell", "a bell, then two hi-hats"]) == {"bell", "two", "hi-hats"}


def test_counts_add_up():
    one, two = Counts(), Counts()
    for _ in range(2):
        one.record(record(captions=["a bell"], category={"bell": 2}))
    one.file(4.0, [Rejection(1, "a", "silent", "", 4.0)])
    two.record(record("music", video=True, genre="waltz", instruments=["piano", "oboe"]))
    two.file(2.0, [])
    two.file(0.0, [Rejection(3, "c", "missing", "")])
    one.add(Counts(json.loads(json.dumps(two.to_json()))))
    assert one["clips"] == {"audio": 2, "music": 1} and one["seconds"] == {"audio": 4.0, "music": 2.0}
    assert one["files"] == {"kept": 2, "left out": 1} and one["lengths"] == {"2": 2}
    assert one["rejected files"] == {"missing": 1} and one["rejected clips"] == {"silent": 1}
    assert one["categories"] == {"bell": 2} and one["instruments"] == {"piano": 1, "oboe": 1}
    assert one["with what precedes it"] == {"audio": 0, "music": 0}
    assert one["terms"] == {"bell": 2} and one["with video"] == {"audio": 0, "music": 1}


def test_charts():
    macros = environment().get_template("macros.html").module
    drawn = macros.bars({"a<b": 1, "c": 4, "d": 2}, most=2)
    assert re.findall(r"<span>(.*?)</span><i style=\"width:(.*?)%", drawn) == [("c", "100.0"), ("d", "50.0")]
    assert "<span>1 more</span><span></span><b>1</b>" in drawn
    assert "a&lt;b" in macros.bars({"a<b": 1}) and not macros.bars({}).strip() + macros.bars({"a": 0}).strip()
    assert columns([("x", 1.0), ("y", 3.0)], "files").count("fill: #2563a8") == 2 and columns([], "files") == ""
    words = re.findall(r"font-size:(.*?)rem\" title=\"(.*?)\">(.*?)<", macros.cloud({"rare": 1, "often": 100}))
    assert words == [("2.30", "100", "often"), ("0.80", "1", "rare")] and not macros.cloud({}).strip()


@pytest.mark.slow
@pytest.mark.usefixtures("forkserver")
def test_a_page_of_a_preparation(tmp_path):
    for i in range(3):
        sound(tmp_path / f"{i}.wav", 3.0 * i + 1)
    quoted = {"audio": "0.wav", "captions": ["a <b>bold</b> bell"], "category": {"bell": 1}}
    music = {"domain": "music", "genre": "waltz", "mood": "sad", "tempo": 90, "instruments": ["piano"]}
    lines = [quoted, {"audio": "1.wav", **music}, {"audio": "2.wav"}, {"audio": "none.wav"}, {"audio": "0.wav"}]
    filters = FiltersConfig(min_clip_seconds=1.5, max_silent=0.9)
    prepare_files(str(tmp_path / "out"), MODEL, manifest(tmp_path, *lines), 0, 1, filters)
    page = (tmp_path / "out/prepare_report.html").read_text()
    assert "Filters: min_clip_seconds 1.5; max_silent 0.9." in page
    assert not re.findall("https?://[^ ]*", page), "it needs no network"
    assert page.count("<audio") == page.count('alt="spectrogram"') == 2
    assert "waltz" in page and "missing" in page and "short clip" in page and "<b>bold" not in page
    report = json.loads((tmp_path / "out/prepare_report.json").read_text())
    assert report["counts"]["rejected clips"] == {"short clip": 3} and report["counts"]["rejected files"] == {
        "missing": 1
    }
    assert [example["domain"] for example in report["examples"]] == ["audio", "music"]
    (tmp_path / "2.wav").unlink()
    (tmp_path / "out/prepare_report.json").unlink()
    prepare_files(str(tmp_path / "out"), MODEL, tmp_path / "clips.jsonl", 0, 1, filters)
    assert (tmp_path / "out/prepare_report.html").read_text().count("<audio") == 1, "that file is gone"
