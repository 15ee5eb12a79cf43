"""A first manifest of a folder: what is joined, what is left out, and that nothing is overwritten."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from audiox_trainer.trainer.manifest import scan as scanning
from audiox_trainer.trainer.manifest.manifest import read_entries
from audiox_trainer.trainer.manifest.scan import scan
from tests.helpers.warm_python import python


def put(folder: Path, **contents):
    """Files by name, with dots for double underscores; a value that is no text goes in as JSON."""
    for name, content in contents.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_lies_beside_a_sound_goes_into_its_line(tmp_path):
    put(
        tmp_path,
        dog__wav="",
        dog__mp4="",
        dog__txt="\ufeffa dog barks twice\n\n  two barks \r\n",
        dog__json={"category": {"dog": 2}, "captions": ["barking"], "kit": "x"},
        film__MKV="",
        song__flac="",
        song__jpg="",
        song__json={"domain": "music", "genre": "jazz", "tempo": 120},
        plain__ogg="",
    )
    report = scan(tmp_path, tmp_path / "clips.jsonl", "audio", pictures=False)
    assert lines_of(tmp_path / "clips.jsonl") == [
        {
            "audio": "dog.wav",
            "video": "dog.mp4",
            "domain": "audio",
            "captions": ["a dog barks twice", "two barks", "barking"],
            "category": {"dog": 2},
            "kit": "x",
        },
        {"video": "film.MKV", "domain": "audio"},
        {"audio": "plain.ogg", "domain": "audio"},
        {"audio": "song.flac", "domain": "music", "genre": "jazz", "tempo": 120},
    ]
    assert str(report) == (
        "4 lines: 2 audio, 1 audio with video, 1 video\n"
        "  of these 1 with annotation, 1 with captions and annotation, 2 with neither captions nor annotation\n"
        "not used: 1\n"
        "  song.jpg: a picture"
    )
    assert [entry.domain for entry in read_entries(tmp_path / "clips.jsonl")] == ["audio", "audio", "audio", "music"]


def test_pictures_of_sounds_and_the_domain(tmp_path):
    put(tmp_path, a__wav="", a__png="", b__wav="", b__mp4="", b__jpg="", c__png="")
    report = scan(tmp_path, tmp_path / "clips.jsonl", "music", pictures=True)
    assert lines_of(tmp_path / "clips.jsonl") == [
        {"audio": "a.wav", "video": "a.png", "domain": "music"},
        {"audio": "b.wav", "video": "b.mp4", "domain": "music"},
    ]
    assert report.unused == ["b.jpg: a picture", "c.png: a picture"]


def test_segments_of_one_film(tmp_path):
    segments = [{"start": 0, "end": 10, "captions": ["rain"]}, {"start": 10, "end": 20, "category": "dog"}]
    put(tmp_path, film__mp4="", film__json=segments, film__txt="in the garden")
    scan(tmp_path, tmp_path / "clips.jsonl", "audio", pictures=False)
    first, second = read_entries(tmp_path / "clips.jsonl")
    assert (first.start, first.end, first.captions) == (0, 10, ["in the garden", "rain"])
    assert (second.start, second.end, second.captions) == (10, 20, ["in the garden"])


def test_paths_are_relative_to_the_manifest_where_they_can_be(tmp_path):
    media = tmp_path / "media" / "deep"
    media.mkdir(parents=True)
    (tmp_path / "media" / ".cache").mkdir()
    put(media, a__wav="", __hidden__wav="")
    put(tmp_path / "media" / ".cache", b__wav="")
    scan(tmp_path / "media", tmp_path / "one.jsonl", "audio", pictures=False)
    scan(tmp_path / "media", tmp_path / "elsewhere" / "two.jsonl", "audio", pictures=False)
    assert [line["audio"] for line in lines_of(tmp_path / "one.jsonl")] == ["media/deep/a.wav"]
    assert [line["audio"] for line in lines_of(tmp_path / "elsewhere/two.jsonl")] == [str(media / "a.wav")]


def test_what_is_left_out_is_named(tmp_path, monkeypatch):
    put(
        tmp_path,
        fine__wav="",
        twice__wav="",
        twice__mp3="",
        broken__wav="",
        broken__json="{",
        slip__wav="",
        slip__json={"captoins": ["a"]},
        wrong__wav="",
        wrong__json={"SED": [{"start": 2, "end": 1, "event": "dog"}]},
        path__wav="",
        path__json={"audio": "other.wav"},
        text__wav="",
        alone__txt="nobody",
        readme__md="",
    )
    (tmp_path / "text.txt").write_bytes(b"caf\xe9")
    odd = os.fsdecode(bytes(tmp_path) + b"/caf\xe9.wav")
    Path(odd).touch()
    report = scan(tmp_path, tmp_path / "clips.jsonl", "audio", pictures=False)
    assert [line["audio"] for line in lines_of(tmp_path / "clips.jsonl")] == ["fine.wav"]
    text = str(report)
    for problem in (
        "twice.mp3, twice.wav: several files with one name; rename one",
        "broken.json: not JSON",
        "slip.json: key 'captoins'; did you mean 'captions'?",
        "wrong.json: SED is",
        "path.json: expected an object",
        "text.txt: not UTF-8 (unexpected end of data at byte 3)",
        "alone.txt: no sound or video has this name",
        "readme.md: neither sound nor video",
        "caf\\xe9.wav: audio is",
        "left out: 7",
        "not used: 2",
    ):
        assert problem in text
    monkeypatch.setattr(scanning, "_SHOWN", 2)
    assert "  and 5 more" in str(report)


def test_nothing_is_written_over(tmp_path):
    put(tmp_path, a__wav="", clips__jsonl="mine")
    with pytest.raises(ValueError, match=r"clips\.jsonl exists and is not overwritten"):
        scan(tmp_path, tmp_path / "clips.jsonl", "audio", pictures=False)
    assert (tmp_path / "clips.jsonl").read_text() == "mine"
    with pytest.raises(ValueError, match="is not a folder"):
        scan(tmp_path / "a.wav", tmp_path / "new.jsonl", "audio", pictures=False)
    (tmp_path / "a.wav").unlink()
    with pytest.raises(ValueError, match="no line could be written"):
        scan(tmp_path, tmp_path / "new.jsonl", "audio", pictures=False)
    assert not (tmp_path / "new.jsonl").exists()


@pytest.mark.slow
def test_the_command(tmp_path, root):
    put(tmp_path, a__wav="")
    command = [*python(), "launch/prepare.py", "scan", str(tmp_path), "--out", str(tmp_path / "clips.jsonl")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and "1 lines: 1 audio" in done.stdout
    again = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert again.returncode == 1 and again.stderr.startswith("error: ") and "exists" in again.stderr
