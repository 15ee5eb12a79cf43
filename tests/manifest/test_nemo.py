"""Manifests of NeMo Curator become ours, and ours become theirs, with nothing lost on the way there and back."""

import json

import pytest

from audiox_trainer.trainer.manifest.manifest import read_entries
from audiox_trainer.trainer.manifest.nemo import convert_nemo


def written(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_from_theirs(tmp_path):
    theirs = written(
        tmp_path / "theirs.jsonl",
        {"audio_filepath": "wav/a.wav", "text": "a dog barks", "duration": 9.8, "wer": 3.5},
        {"audio_filepath": "/b.wav", "text": "", "offset": 10.0, "duration": 2.5, "pred_text": "x"},
        {"audio_filepath": "https://host/c.wav", "text": "rain", "captions": [{"text": "rain", "source": "ears"}]},
    )
    (tmp_path / "new").mkdir()
    assert convert_nemo(theirs, tmp_path / "new/ours.jsonl") == "3 lines from NeMo Curator's form"
    whole, part, far = lines_of(tmp_path / "new/ours.jsonl")
    place = str(tmp_path / "wav/a.wav")
    assert whole == {"audio": place, "captions": ["a dog barks"], "duration": 9.8, "wer": 3.5}
    assert part == {"audio": "/b.wav", "start": 10.0, "end": 12.5, "pred_text": "x"}
    assert far == {"audio": "https://host/c.wav", "captions": [{"text": "rain", "source": "ears"}]}
    assert len(read_entries(tmp_path / "new/ours.jsonl")) == 3


def test_there_and_back(tmp_path):
    given = [
        {"audio": "/a.wav", "captions": ["a dog", {"text": "two dogs", "source": "ears", "kind": "count"}], "kit": "x"},
        {"audio": "/b.wav", "start": 10.0, "end": 12.25, "caption": "jazz", "domain": "music", "tempo": 90},
        {"audio": "/c.mp4", "video": "/c.mp4", "category": {"rain": None}},
    ]
    ours = written(tmp_path / "ours.jsonl", *given)
    assert convert_nemo(ours, tmp_path / "theirs.jsonl") == "3 lines to NeMo Curator's form"
    first, second, third = lines_of(tmp_path / "theirs.jsonl")
    assert (first["audio_filepath"], first["text"], "duration" in first) == ("/a.wav", "a dog", False)
    assert (second["text"], second["offset"], second["duration"]) == ("jazz", 10.0, 2.25)
    assert third["text"] == "" and third["video"] == "/c.mp4"
    convert_nemo(tmp_path / "theirs.jsonl", tmp_path / "back.jsonl")
    assert lines_of(tmp_path / "back.jsonl") == given


def test_segments_of_theirs_go_back_with_their_own_times(tmp_path):
    """As `segment` writes them: it keeps the keys that it does not know."""
    theirs = written(tmp_path / "theirs.jsonl", {"audio_filepath": "/a.wav", "text": "a dog", "duration": 120})
    convert_nemo(theirs, tmp_path / "ours.jsonl")
    (line,) = lines_of(tmp_path / "ours.jsonl")
    segments = [line | {"start": start, "end": start + 10.0} for start in (0.0, 10.0)] + [line | {"start": 110.0}]
    convert_nemo(written(tmp_path / "clips.jsonl", *segments), tmp_path / "back.jsonl")
    common = {"audio_filepath": "/a.wav", "text": "a dog", "captions": ["a dog"]}
    assert lines_of(tmp_path / "back.jsonl") == [
        common | {"offset": 0.0, "duration": 10.0},
        common | {"offset": 10.0, "duration": 10.0},
        common | {"offset": 110.0},
    ]
    convert_nemo(tmp_path / "back.jsonl", tmp_path / "again.jsonl")
    entries = read_entries(tmp_path / "again.jsonl")
    assert [(entry.start, entry.end) for entry in entries] == [(0.0, 10.0), (10.0, 20.0), (110.0, None)]


def test_other_keys_do_not_count_for_those_of_the_form(tmp_path):
    strange = {"audio_filepath": "/a.wav", "audio": "/b.wav", "offset": 1.0, "start": 7, "duration": 2.0, "end": 8}
    convert_nemo(written(tmp_path / "theirs.jsonl", strange), tmp_path / "ours.jsonl")
    assert lines_of(tmp_path / "ours.jsonl") == [{"audio": "/a.wav", "start": 1.0, "end": 3.0}]
    ours = written(tmp_path / "own.jsonl", {"audio": "/a.wav", "text": "hello"})
    convert_nemo(ours, tmp_path / "back.jsonl")
    assert lines_of(tmp_path / "back.jsonl") == [{"audio_filepath": "/a.wav", "text": "hello"}]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no line"),
        (["not json"], "theirs.jsonl:1: not JSON"),
        ([{"audio_filepath": 3, "text": "x"}], "theirs.jsonl:1: audio_filepath is 3; expected a path"),
        ([{"audio_filepath": "a", "text": ["x"]}], "theirs.jsonl:1: text is .*expected a text"),
        ([{"audio_filepath": "a", "offset": "1"}], "theirs.jsonl:1: offset is '1'; expected seconds"),
        ([{"audio_filepath": "a", "offset": 1, "duration": -1}], "theirs.jsonl:1: duration is -1; expected seconds"),
        ([{"audio_filepath": "a", "offset": 1, "duration": 0}], "theirs.jsonl:1: end 1.0 must be above start"),
        ([{"audio_filepath": "a"}, {"audio": "b"}], "theirs.jsonl:2: lacks 'audio_filepath', unlike the first line"),
        ([{"audio": "a"}, {"audio_filepath": "b"}], "theirs.jsonl:2: has 'audio_filepath', unlike the first line"),
        (["[]"], "theirs.jsonl:1: .* is a list"),
        (['{"audio_filepath": "a", "snr": NaN}'], "theirs.jsonl:1: a number is not finite"),
    ],
)
def test_wrong_lines_are_named_and_nothing_is_written(tmp_path, lines, message):
    theirs = written(tmp_path / "theirs.jsonl", *lines)
    with pytest.raises(ValueError, match=message):
        convert_nemo(theirs, tmp_path / "ours.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.jsonl"]


def test_what_is_there_stays(tmp_path):
    theirs = written(tmp_path / "theirs.jsonl", {"audio_filepath": "a"})
    (tmp_path / "ours.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        convert_nemo(theirs, tmp_path / "ours.jsonl")
    with pytest.raises(ValueError, match=r"none\.jsonl: No such file"):
        convert_nemo(tmp_path / "none.jsonl", tmp_path / "other.jsonl")
