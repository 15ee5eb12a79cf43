"""The manifest: what is taken, what is refused and how the message reads, what holds for a piece of a file."""

import json
import random

import jsonschema
import pytest

from audiox_trainer.trainer.manifest.manifest import (
    clip_annotation,
    clip_captions,
    line_schema,
    read_entries,
    read_entry,
    written_caption,
)


def written(tmp_path, *lines):
    path = tmp_path / "clips.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_full_line(tmp_path):
    path = written(
        tmp_path,
        {
            "audio": "wav/a.wav",
            "captions": ["a dog barks", "barking"],
            "category": {"dog": 2, "rain": None},
            "SED": [{"start": 0, "end": 1.5, "event": "dog"}],
            "time_relation": "dog, dog",
            "caption": "a dog in the rain",
            "start": 1,
            "end": 4.5,
            "kit": "BJA_Pacific",
        },
    )
    (entry,) = read_entries(path)
    assert (entry.line, entry.name, entry.audio, entry.video) == (1, "wav/a.wav", str(tmp_path / "wav/a.wav"), None)
    assert (entry.domain, entry.start, entry.end) == ("audio", 1.0, 4.5)
    assert entry.captions == ["a dog barks", "barking"]
    assert entry.annotation == {
        "caption": "a dog in the rain",
        "category": {"dog": 2, "rain": None},
        "SED": [{"start": 0.0, "end": 1.5, "event": "dog"}],
        "time_relation": "dog, dog",
        "extra": {"kit": "BJA_Pacific"},
    }


def test_times_as_in_the_paper(tmp_path):
    events = [{"00:02-00:06": "dog barks"}, {"1:02.5 – 01:03:04": "rain"}, {"start": 1, "end": 2, "event": "bell"}]
    (entry,) = read_entries(written(tmp_path, {"audio": "a.wav", "SED": events}))
    assert entry.annotation["SED"] == [
        {"start": 2.0, "end": 6.0, "event": "dog barks"},
        {"start": 62.5, "end": 3784.0, "event": "rain"},
        {"start": 1.0, "end": 2.0, "event": "bell"},
    ]


def test_captions_with_source_and_kind(tmp_path):
    given = ["a dog", {"text": "two dogs", "source": "ears", "kind": "count"}, {"text": "barking", "source": "labels"}]
    (entry,) = read_entries(written(tmp_path, {"audio": "a.wav", "captions": given}))
    assert entry.captions == ["a dog", "two dogs", "barking"]
    assert entry.origins == {"two dogs": ("ears", "count"), "barking": ("labels", "caption")}
    assert [written_caption(text, entry) for text in entry.captions][:2] == given[:2]
    assert clip_captions(entry, whole=True) == entry.captions
    assert clip_captions(entry, whole=False) == ["a dog", "barking"], "a piece may have one dog"


def test_music_video_and_short_forms(tmp_path):
    path = written(
        tmp_path,
        "",
        {"video": "/clips/7.mp4", "domain": "music", "genre": "jazz", "instruments": "piano", "tempo": 120},
        {"audio": "b.wav", "video": "b.mp4", "category": "kick drum"},
    )
    music, drum = read_entries(path)
    assert music.line == 2
    assert music.audio == music.video == "/clips/7.mp4"
    assert music.annotation == {"genre": "jazz", "instruments": ["piano"], "tempo": 120.0}
    assert drum.annotation == {"category": {"kick drum": None}}
    assert (drum.audio, drum.video) == (str(tmp_path / "b.wav"), str(tmp_path / "b.mp4"))


def test_a_byte_order_mark_and_windows_lines(tmp_path):
    path = tmp_path / "clips.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"audio": "a.wav"}\r\n{"audio": "b.wav"}\r\n')
    assert [entry.name for entry in read_entries(path)] == ["a.wav", "b.wav"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", r"not JSON .*'not json'; expected one object per line"),
        ('{"audio": "a.wav"', "not JSON"),
        ('["a.wav"]', "is a list; expected an object"),
        ('{"audio": "a.wav", "start": NaN}', "NaN is not a number"),
        ({"captions": ["x"]}, "neither 'audio' nor 'video'"),
        ({"audio": 3}, "audio is 3; expected a path"),
        ({"audio": "a\0.wav"}, "audio is .*; expected a path"),
        ({"audio": "a.wav", "captions": "a dog"}, "captions is 'a dog'; expected a list of texts"),
        ({"audio": "a.wav", "captions": ["a", 1]}, "captions is .*expected a list of texts"),
        ({"audio": "a.wav", "captions": ["a", " "]}, "captions is .*expected a list of texts"),
        ({"audio": "a.wav", "captions": [{"source": "ears"}]}, "captions is .*expected a list of texts"),
        ({"audio": "a.wav", "captions": [{"text": "a", "sort": "b"}]}, "captions is .*expected a list of texts"),
        ({"audio": "a.wav", "SED": [{"00:06-00:02": "dog"}]}, "SED is .*expected a list of"),
        ({"audio": "a.wav", "SED": [{"0-2": "dog"}]}, "SED is .*expected a list of"),
        ({"audio": "a.wav", "category": ["dog"]}, "category is .*expected a name, or names with counts"),
        ({"audio": "a.wav", "category": {"dog": "two"}}, "category is .*expected a name, or names with counts"),
        ({"audio": "a.wav", "category": {"dog": 0}}, "category is .*expected a name, or names with counts"),
        ({"audio": "a.wav", "SED": [{"start": 2, "end": 1, "event": "dog"}]}, "SED is .*expected a list of"),
        ({"audio": "a.wav", "SED": [{"start": 2, "end": 3}]}, "SED is .*expected a list of"),
        ({"audio": "a.wav", "domain": "speech"}, r"domain is 'speech'; expected one of \('audio', 'music'\)"),
        ({"audio": "a.wav", "genre": "jazz"}, "'genre' belongs to music"),
        ({"audio": "a.wav", "domain": "music", "tempo": 0}, "tempo is 0; expected beats per minute"),
        ({"audio": "a.wav", "domain": "music", "tempo": "fast"}, "tempo is 'fast'"),
        ({"audio": "a.wav", "start": -1}, "start is -1; expected seconds"),
        ({"audio": "a.wav", "start": True}, "start is True; expected seconds"),
        ({"audio": "a.wav", "start": 10**400}, "start is 1000"),
        ({"audio": "a.wav", "start": 1e10}, "start is 10000000000.0; expected seconds, from 0 to 1e9"),
        ({"audio": "a.wav", "category": {"dog": 1.5}}, "category is .*expected a name, or names with counts"),
        (
            {"audio": "htps://host/a.wav"},
            "audio is 'htps://host/a.wav': htps:// is not read; expected a path, or an address with https://",
        ),
        (
            {"audio": "a.wav", "video": "gs://bucket/a.mp4"},
            r"video is 'gs://bucket/a.mp4': gs:// needs another package: .*gcsfs",
        ),
        ({"audio": "a.wav", "start": 3, "end": 2}, r"end 2\.0 must be above start 3\.0"),
        ({"audio": "a.wav", "captoins": ["a"]}, "key 'captoins'; did you mean 'captions'?"),
        ({"audio": "a.wav", "sed": []}, "key 'sed'; did you mean 'SED'?"),
        ({"audio": "a.wav", "instrument": "x"}, "key 'instrument'; did you mean 'instruments'?"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = written(tmp_path, {"audio": "fine.wav"}, line)
    with pytest.raises(ValueError, match=message) as caught:
        read_entries(path)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_no_manifest_or_an_empty_one(tmp_path):
    with pytest.raises(ValueError, match=r"none\.jsonl: No such file"):
        read_entries(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="holds no line"):
        read_entries(written(tmp_path, "", "  "))


def test_annotation_of_a_piece(tmp_path):
    path = written(
        tmp_path,
        {
            "audio": "a.wav",
            "category": {"dog": 2, "bell": 1},
            "SED": [
                {"start": 0.5, "end": 1, "event": "dog"},
                {"start": 3, "end": 5, "event": "bell"},
                {"start": 4.5, "end": 5.5, "event": "dog"},
            ],
            "time_relation": "dog, bell, dog",
            "kit": "x",
        },
        {"audio": "a.wav", "category": {"dog": 2}, "time_relation": "dog, dog", "caption": "dogs"},
    )
    timed, counted = read_entries(path)
    assert clip_annotation(timed, 0.0, 8.0, whole=True) == timed.annotation
    piece = clip_annotation(timed, 4.0, 4.0, whole=False)
    assert piece == {
        "category": {"bell": 1, "dog": 1},
        "SED": [{"start": 0.0, "end": 1.0, "event": "bell"}, {"start": 0.5, "end": 1.5, "event": "dog"}],
        "extra": {"kit": "x"},
    }
    assert clip_annotation(counted, 4.0, 4.0, whole=False) == {"category": {"dog": None}, "caption": "dogs"}
    assert timed.annotation["time_relation"] == "dog, bell, dog", "the entry itself must not change"


def test_a_long_value_is_not_repeated(tmp_path):
    with pytest.raises(ValueError, match=r"instruments is .*…; expected") as caught:
        read_entries(written(tmp_path, {"audio": "a.wav", "domain": "music", "instruments": [["a" * 100_000]]}))
    assert len(str(caught.value)) < 400


def test_addresses(tmp_path):
    path = written(
        tmp_path,
        {"audio": "https://host/a%20b.wav?X-Amz-Signature=abc&part=1", "video": "http://host/b.mp4"},
        {"audio": (tmp_path / "c.wav").as_uri(), "video": "file:///clips/d.mp4"},
        {"audio": "odd::name.wav"},
    )
    signed, local, odd = read_entries(path)
    assert (signed.audio, signed.video) == ("https://host/a%20b.wav?X-Amz-Signature=abc&part=1", "http://host/b.mp4")
    assert signed.name == "https://host/a%20b.wav?[redacted]&part=1", "the name goes into shards and reports"
    assert (local.audio, local.video) == (str(tmp_path / "c.wav"), "/clips/d.mp4")
    assert odd.audio == str(tmp_path / "odd::name.wav")


# Values that are right for some key; each key is tried with all of them.
POOL = [
    "a.wav", "dog", " ", "", "a\0b", "\u00a0", "music", "audio", "null", None, True, False, 0, 0.0, -1, 1, 2.0, 2.5, 90,
    1e9, 1.1e9, 10**400, [], ["dog"], ["dog", ""], ["dog", 1], [["dog"]], {}, {"dog": 2}, {"dog": None}, {"dog": 0},
    {"dog": 1.5}, {"dog": 2.0}, {"dog": True}, {"dog": "2"}, {" ": 1}, {"dog": 10**400},
    [{"start": 0, "end": 1.5, "event": "dog"}], [{"start": 0, "end": 1}], [{"start": 0, "end": 1, "event": ""}],
    [{"start": 0, "end": 1, "event": "dog", "loud": 1}], [{"start": -1, "end": 1, "event": "dog"}],
    [{"00:02-00:06": "dog"}], [{"00:02-00:06": "dog", "00:07-00:08": "dog"}], [{"00:02": "dog"}], [{"00:02-00:06": 1}],
    [{"text": "a dog"}], ["a dog", {"text": "a dog", "kind": "count"}], [{"text": "", "kind": "count"}],
    [{"start": 0, "end": None, "event": "dog"}], [{"start": True, "end": 2, "event": "dog"}], [3],
]  # fmt: skip
WHOLE = line_schema()
KEYS = {
    key: jsonschema.Draft202012Validator({"$defs": WHOLE["$defs"], **properties})
    for key, properties in WHOLE["properties"].items()
}


def lines():
    """Every key with every value, alone and with other keys, and a thousand lines of several keys."""
    for key in (*KEYS, "kit"):
        for value in POOL:
            yield {key: value}
            yield {"audio": "a.wav", "domain": "music", key: value}
    draw = random.Random(0)
    good = {key: list(filter(validator.is_valid, POOL)) for key, validator in KEYS.items()} | {"kit": POOL}
    for _ in range(1000):
        line = {"audio": "a.wav"} if draw.random() < 0.7 else {}
        for key in draw.sample([*KEYS, "kit"], draw.randint(0, 4)):
            line[key] = draw.choice(good[key] if draw.random() < 0.9 else POOL)
        yield line
    yield from ("a.wav", 3, None, [], ["a.wav"])


def test_the_schema_and_the_reader_take_the_same_lines(tmp_path):
    jsonschema.Draft202012Validator.check_schema(WHOLE)
    schema = jsonschema.Draft202012Validator(WHOLE)
    taken = refused = 0
    for line in lines():
        try:
            read_entry(tmp_path / "clips.jsonl", 1, json.dumps(line).encode())
            message = ""
        except ValueError as error:
            message = str(error)
        if "must be above start" in message:
            continue  # a schema cannot compare two values
        assert schema.is_valid(line) == (not message), (line, message)
        taken, refused = taken + (not message), refused + bool(message)
    assert taken > 400 and refused > 1000


def test_ten_wrong_lines_are_named_and_all_are_counted(tmp_path):
    path = written(tmp_path, {"audio": "a.wav"}, *({"audio": "a.wav", "captoins": [str(i)]} for i in range(12)))
    with pytest.raises(ValueError, match=r"clips\.jsonl: 12 of 13 lines are wrong") as caught:
        read_entries(path)
    said = str(caught.value).splitlines()
    assert "clips.jsonl:2: key 'captoins'" in said[1] and "clips.jsonl:11: " in said[10] and said[11] == "  and 2 more"


def test_a_number_that_no_float_holds(tmp_path):
    """Among the keys that are kept as they are, too: a record could not be written with it."""
    with pytest.raises(ValueError, match=r"clips\.jsonl:1: not JSON \(1e999 is larger than any float"):
        read_entries(written(tmp_path, '{"audio": "a.wav", "gain": {"left": [1e999]}}'))
    assert read_entries(written(tmp_path, '{"audio": "a.wav", "gain": 1.5e2}'))[0].annotation == {
        "extra": {"gain": 150}
    }
