"""Media and scenes to shards: the folders, the rejections, the summary, and that workers do not change the result."""

import json
import os
import re
import subprocess
from dataclasses import replace

import av
import numpy as np
import pytest
import soundfile

from audiox_trainer.launch.prepare import parse
from audiox_trainer.trainer.data.shards import check_shards, read_features
from audiox_trainer.trainer.prepare import prepare_scenes as module
from audiox_trainer.trainer.prepare.prepare_files import prepare_files
from audiox_trainer.trainer.prepare.prepare_scenes import prepare_scenes
from tests.helpers.preparation import MODEL, contents, manifest, records, sound
from tests.helpers.warm_python import python

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forkserver")]


def test_scenes_do_not_depend_on_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 8)  # more tasks than workers
    summary = prepare_scenes(tmp_path / "one", MODEL, clips=50, seed=3, music_share=0.4, workers=1)
    prepare_scenes(tmp_path / "two", MODEL, clips=50, seed=3, music_share=0.4, workers=2)
    assert summary.clips == {"audio": 30, "music": 20}
    assert str(summary) == "kept 30 audio, 20 music clips (102.4 s of sound), rejected nothing"
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert {"audio/index.json", "audio/features.json", "music/shard.00000.mds"} < set(one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]

    sounds, music = records(tmp_path / "one/audio"), records(tmp_path / "one/music")
    assert [r.id for r in sounds] == [f"scene-{i:06d}" for i in range(30)]
    assert {r.domain for r in music} == {"music"}
    for record in sounds + music:
        assert record.latent_mean.shape == record.latent_std.shape == (32, 128)
        assert record.image.shape == (16, 64) and record.motion.shape == (32, 64)
        assert record.captions[0] == record.annotation["caption"] and len(record.captions) > 1
    assert "SED" in sounds[0].annotation and "tempo" in music[0].annotation
    assert read_features(tmp_path / "one/music").domains == {"music": 20}


def test_scenes_with_completion_pairs(tmp_path):
    for name, pairs in (("alone", False), ("pairs", True)):
        prepare_scenes(tmp_path / name, MODEL, clips=20, seed=3, music_share=0.4, workers=1, pairs=pairs)
    for domain, preceding in (("audio", (0, 128)), ("music", (32, 128))):
        for one, other in zip(*(records(tmp_path / name / domain) for name in ("alone", "pairs")), strict=True):
            assert np.array_equal(one.latent_mean, other.latent_mean) and len(one.preceding) == 0
            assert other.preceding.shape == preceding and not np.array_equal(other.preceding, other.latent_mean)


def test_scenes_with_an_extra_sound(tmp_path):
    prepare_scenes(tmp_path / "laser", MODEL, clips=12, seed=3, music_share=0.25, workers=1, extra="laser")
    sounds, music = records(tmp_path / "laser/audio"), records(tmp_path / "laser/music")
    assert len(sounds) == 9 and all("laser" in r.annotation["category"] and "laser" in r.captions[0] for r in sounds)
    assert len(music) == 3 and not any("laser" in r.captions[0] for r in music)
    assert parse(["scenes", "--out", "x", "--extra", "laser"]).extra == "laser"
    assert parse(["scenes", "--out", "x"]).extra == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clips": 0}, "clips 0 must be at least 1"),
        ({"music_share": 1.5}, "music share 1.5 between 0 and 1"),
        ({"workers": 0}, "workers is 0"),
        (
            {"model": replace(MODEL, codec=replace(MODEL.codec, sample_rate=16000))},
            "needs 16000 Hz, 16384 samples.*scenes have 8000 Hz, 16384 samples.*use configs/tiny.json",
        ),
        ({"model": replace(MODEL, video=replace(MODEL.video, size=32))}, "32 pixels per side; scenes have"),
    ],
)
def test_scenes_that_cannot_be(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        prepare_scenes(
            tmp_path / "out", **{"model": MODEL, "clips": 4, "seed": 0, "music_share": 0.5, "workers": 1, **arguments}
        )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Shards of good and bad files by one worker and by two, and what was said."""
    tmp_path = tmp_path_factory.mktemp("files")
    sound(tmp_path / "dog.wav")
    sound(tmp_path / "long.flac", 5.0)
    sound(tmp_path / "quiet.wav", level=1e-5)
    sound(tmp_path / "cut.flac", 5.0)
    os.truncate(tmp_path / "cut.flac", 9000)
    half = np.zeros(2 * 16384)
    half[:16384] = 0.1
    soundfile.write(tmp_path / "half.wav", half, 8000)
    (tmp_path / "text.wav").write_text("no sound")
    path = manifest(
        tmp_path,
        {"audio": "dog.wav", "captions": ["a dog"], "kit": "x"},
        {"audio": "long.flac", "category": {"bell": 2}},
        {"audio": "quiet.wav"},
        {"audio": "none.wav"},
        {"audio": "cut.flac"},
        {"audio": "half.wav"},
        {"audio": "text.wav"},
        {"audio": str(tmp_path / "dog.wav"), "domain": "music", "instruments": "piano", "tempo": 90},
        {"audio": "dog.wav", "category": {"dog": 2}},
    )
    summary = prepare_files(str(tmp_path / "one"), MODEL, path, seed=0, workers=1)
    prepare_files(str(tmp_path / "two"), MODEL, path, seed=0, workers=2)
    return tmp_path, str(summary)


def test_files_are_kept_or_rejected_with_the_reason(prepared):
    tmp_path, summary = prepared
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    kept, _, cost = summary.partition("; ")
    assert kept == (
        "kept 6 audio, 1 music clips (10.0 s of sound), rejected 1 missing, 2 silent, 1 truncated, 1 undecodable"
    )
    assert re.fullmatch(r"took 0\.\d\d core hours, forecast 0\.\d\d core hours", cost)
    rejected = [json.loads(line) for line in (tmp_path / "one/rejected.jsonl").read_text().splitlines()]
    assert [(r["line"], r["audio"], r["reason"]) for r in rejected] == [
        (3, "quiet.wav", "silent"),
        (4, "none.wav", "missing"),
        (5, "cut.flac", "truncated"),
        (6, "half.wav", "silent"),
        (7, "text.wav", "undecodable"),
    ]
    assert rejected[1]["start"] is None and rejected[3]["start"] == pytest.approx(2.048)
    assert rejected[3]["detail"] == "nothing above -80 dB"


def test_records_of_files(prepared):
    tmp_path, _ = prepared
    found = records(tmp_path / "one/audio")
    assert [r.id for r in found] == [
        "line-000001-0000",
        "line-000002-0000",
        "line-000002-0001",
        "line-000002-0002",
        "line-000006-0000",
        "line-000009-0000",
    ]
    assert found[0].captions == ["a dog"]
    said = [{"source": "manifest", "kind": "caption"}]
    source = {"audio": "dog.wav", "start": 0.0}
    assert found[0].annotation == {"extra": {"kit": "x"}, "source": source, "caption_origins": said}
    assert [r.seconds for r in found[:4]] == pytest.approx([1.0, 2.048, 2.048, 0.904])
    made = [{"source": "template", "kind": "count"}] * len(found[2].captions)
    assert found[2].annotation.pop("caption_origins") == made
    assert found[2].annotation == {"category": {"bell": None}, "source": {"audio": "long.flac", "start": 2.048}}
    assert found[4].captions == []
    assert any("dogs" in text or "twice" in text for text in found[5].captions), found[5].captions
    assert all(r.image.shape == r.motion.shape == (0, 64) for r in found)
    (music,) = records(tmp_path / "one/music")
    assert music.domain == "music" and any("piano" in text for text in music.captions)
    check_shards(tmp_path / "one/music", hashes=True)


def test_files_with_video(tmp_path):
    sound(tmp_path / "a.wav", 2.0)
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(50):
            picture = np.full((32, 48, 3), 5 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    path = manifest(tmp_path, {"audio": "a.wav", "video": "a.avi"}, {"audio": "a.wav", "video": "a.wav"})
    summary = prepare_files(str(tmp_path / "out"), MODEL, path, seed=0, workers=1)
    (record,) = records(tmp_path / "out/audio")
    assert record.image.shape == (16, 64) and record.motion.shape == (32, 64)
    assert np.abs(record.motion).max() > 0
    assert summary.rejected == {"no video track": 1}


def test_nothing_kept(tmp_path):
    path = manifest(tmp_path, {"audio": "none.wav"}, {"audio": "nor-this.wav"})
    with pytest.raises(
        ValueError, match=r"no clip could be kept: 2 missing; the first is line 1: missing \(.*none.wav"
    ):
        prepare_files(str(tmp_path / "out"), MODEL, path, seed=0, workers=1)
    assert not (tmp_path / "out/audio").exists()
    assert len((tmp_path / "out/rejected.jsonl").read_text().splitlines()) == 2


def test_help_explains_the_manifest(capsys):
    with pytest.raises(SystemExit) as left:
        parse(["files", "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "one JSON object per line" in text and '{"audio": "wav/0001.wav"' in text


def test_the_command_line(tmp_path, root):
    sound(tmp_path / "dog.wav")
    path = manifest(tmp_path, {"audio": "dog.wav", "captions": ["a dog"]})

    def run(*arguments):
        command = [*python(), root / "launch/prepare.py", *map(str, arguments)]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)

    done = run("files", "--manifest", path, "--config", "configs/tiny.json", "--out", tmp_path / "out", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/out: kept 1 audio clips (1.0 s of sound), rejected nothing; took ")
    again = run("scenes", "--clips", 2, "--out", tmp_path / "out")
    assert again.returncode == 1 and "Traceback" not in again.stderr
    assert again.stderr.startswith(f"error: {tmp_path}/out exists already")
