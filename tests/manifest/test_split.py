"""What is held out of a manifest: whole files, the same ones when it grows, in manifests that are valid anywhere."""

import json

import pytest

from audiox_trainer.trainer.manifest.manifest import read_entries
from audiox_trainer.trainer.manifest.split import HELD_OUT, TRAIN, split_manifest

SHARE = 0.3


def manifest(folder, files, segments=2):
    folder.mkdir(exist_ok=True)
    rows = [
        {"audio": f"wav/{i}.wav", "start": s, "end": s + 1, "kit": "x"} for i in range(files) for s in range(segments)
    ]
    path = folder / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def names(path):
    return [entry.name.rpartition("/")[2] for entry in read_entries(path)]


def test_files_go_as_a_whole_and_stay_where_they_were(tmp_path):
    path = manifest(tmp_path / "a", 100)
    counts = split_manifest(path, tmp_path / "split", SHARE)
    train, held_out = (names(tmp_path / "split" / name) for name in (TRAIN, HELD_OUT))
    assert (len(train), len(held_out)) == counts and sum(counts) == 200
    assert not set(train).intersection(held_out) and 30 < len(held_out) < 90
    split_manifest(manifest(tmp_path / "a", 300), tmp_path / "grown", SHARE)
    grown = names(tmp_path / "grown" / HELD_OUT)
    assert [name for name in grown if name in set(train + held_out)] == held_out
    split_manifest(path, tmp_path / "more", 0.5)
    assert set(held_out) < set(names(tmp_path / "more" / HELD_OUT))


def test_lines_keep_what_they_said_and_find_their_files(tmp_path):
    path = manifest(tmp_path / "a", 20)
    split_manifest(path, tmp_path / "split", SHARE)
    before = {(entry.audio, entry.start): entry.annotation for entry in read_entries(path)}
    after = [entry for name in (TRAIN, HELD_OUT) for entry in read_entries(tmp_path / "split" / name)]
    assert {(entry.audio, entry.start): entry.annotation for entry in after} == before


def test_what_is_refused(tmp_path):
    path = manifest(tmp_path / "a", 20)
    for share in (0, 1, -0.5, float("nan")):
        with pytest.raises(ValueError, match="must be above 0 and below 1"):
            split_manifest(path, tmp_path / "split", share)
    with pytest.raises(ValueError, match=r"of 40 lines none would be in held_out\.jsonl at --share 1e-06"):
        split_manifest(path, tmp_path / "split", 1e-6)
    assert not (tmp_path / "split").exists()
    (tmp_path / "split").mkdir()
    with pytest.raises(ValueError, match="split"):
        split_manifest(path, tmp_path / "split", SHARE)
