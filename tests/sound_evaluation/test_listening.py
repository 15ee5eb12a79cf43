"""A listening test: what listeners get says nothing about whose sound it is, and their answers become right figures."""

import json
import re

import numpy as np
import pytest
import soundfile

from audiox_trainer.trainer.pages.tables import as_text
from audiox_trainer.trainer.sound_evaluation.listening import make_study, read_study, study_tables

SYSTEMS = ("turbo", "baseline")


@pytest.fixture
def study(tmp_path):
    """Three prompts with true sounds, and the sounds of two systems, stereo; the page and its key."""
    rng = np.random.default_rng(0)
    lines = []
    for name in ("truth", *SYSTEMS):
        (tmp_path / name).mkdir()
        for i in range(3):
            soundfile.write(tmp_path / name / f"take{i}.wav", 0.1 * rng.standard_normal((800, 2)), 8000)
    for i in range(3):
        lines.append({"text": f"bell number {i}", "out": f"take{i}.wav", "reference": f"truth/take{i}.wav"})
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    make(tmp_path)
    return tmp_path


def make(folder, out="study", key="key.json", **changes):
    options = {"count": None, "seed": 0, "title": "Listening test"} | changes
    folders = [folder / name for name in SYSTEMS]
    return make_study(folders, folder / "prompts.jsonl", folder / out, folder / key, **options)


def answers(folder, name, rate, **changes):
    key = json.loads((folder / "key.json").read_text())
    rated = [{"id": item["id"], "ovl": rate(item)[0], "rel": rate(item)[1]} for item in key["items"]]
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"study": key["study"], "listener": name, "answers": rated} | changes))
    return path


def test_what_listeners_get_is_anonymous_and_whole(study):
    page, key = (study / "study/index.html").read_text(), json.loads((study / "key.json").read_text())
    files = sorted(path.name for path in (study / "study/media").iterdir())
    assert files == sorted(f"{item['id']}.flac" for item in key["items"]) and len(files) == 9
    assert key["systems"] == ["turbo", "baseline", "reference"]
    media = b"".join(file.read_bytes() for file in (study / "study/media").iterdir())
    for word in ("turbo", "baseline", "truth", "take0"):
        assert word not in page and word.encode() not in media
    shown = json.loads(re.search(r"ITEMS = (\[.*?\]);", page)[1])
    assert [each["id"] for each in shown] == sorted(each["id"] for each in shown), "their order says nothing"
    (item,) = [item for item in key["items"] if (item["system"], item["prompt"]) == ("baseline", "take1")]
    (text,) = [each["text"] for each in shown if each["id"] == item["id"]]
    assert text == "bell number 1"
    wave, rate = soundfile.read(study / "study/media" / f"{item['id']}.flac")
    expected, _ = soundfile.read(study / "baseline/take1.wav")
    assert rate == 8000 and np.array_equal(wave, expected)


def test_a_share_of_the_prompts(study):
    key = make(study, "part", "part.json", count=2)
    assert len(key.items) == 6 and len({item.prompt for item in key.items}) == 2
    with pytest.raises(ValueError, match="--count 4: must be from 1 to 3"):
        make(study, "more", "more.json", count=4)


def test_the_figures_are_means_over_listeners_and_prompts(study):
    quality = {"turbo": 70, "baseline": 40, "reference": 90}
    one = answers(study, "one", lambda item: (quality[item["system"]], 50 + int(item["prompt"][-1])))
    two = answers(study, "two", lambda item: (quality[item["system"]] + 6, 10))
    report = read_study(study / "key.json", [one, two])
    found = {(row["system"], row["rating"]): row for row in report["results"]}
    assert {name: found[name, "OVL"]["mean"] for name in quality} == {"turbo": 73, "baseline": 43, "reference": 93}
    assert found["turbo", "REL"]["mean"] == pytest.approx((51 + 10) / 2)
    assert found["turbo", "REL"]["low"] <= 30.5 <= found["turbo", "REL"]["high"]
    (row,) = [r for r in report["differences"] if (r["system"], r["rating"]) == ("baseline", "OVL")]
    assert row["value"] == -30 and row["against"] == "turbo"
    assert report["rated"] == {"one": 9, "two": 9}
    text = "\n".join(as_text(table) for table in study_tables(report))
    assert "2 listeners rated 9 to 9 sounds of 3 prompts" in text and "73.0" in text


def test_bad_answers_are_refused(study):
    def middle(item):
        return (50, 50)

    good = answers(study, "good", middle)
    key = study / "key.json"
    first = json.loads(key.read_text())["items"][0]
    cases = {
        "of another listening test": answers(study, "other", middle, study="x"),
        "is of the same listener": answers(study, "twice", middle, listener="good"),
        "is unknown, or rated twice": answers(study, "strange", middle, answers=[{"id": "x", "ovl": 1, "rel": 1}]),
        "ovl": answers(study, "loud", lambda item: (101, 5)),
        "not a file that the page": answers(study, "half", middle),
    }
    cases["not a file that the page"].write_text('{"study"')
    for says, path in cases.items():
        with pytest.raises(ValueError, match=says) as error:
            read_study(key, [good, path])
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    alone = answers(study, "alone", middle, answers=[{"id": first["id"], "ovl": 1, "rel": 1}])
    with pytest.raises(ValueError, match=r"nobody has rated the sound of .*, and 7 others; wait"):
        read_study(key, [alone])


def test_nothing_is_written_where_a_sound_is_missing_or_the_key_would_be_seen(study):
    with pytest.raises(ValueError, match=r"--key .*: it exists"):
        make(study, "again")
    with pytest.raises(ValueError, match="lies where listeners see it"):
        make(study, "again", "again/key.json")
    (study / "turbo/take2.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"take2\.wav: .*; give wav, flac, ogg or mp3"):
        make(study, "again", "other.json")
    (study / "turbo/take2.wav").unlink()
    with pytest.raises(ValueError, match="turbo has no sound for take2"):
        make(study, "again", "other.json")
    assert not (study / "again").exists() and not (study / "other.json").exists()
