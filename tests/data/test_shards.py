"""Shards: what is written comes back, what does not fit is refused, and damage is found and named."""

import json
import os
import resource
import shutil
from dataclasses import replace

import numpy as np
import pytest

from audiox_trainer.models.config import CodecConfig, TextConfig, VideoConfig
from audiox_trainer.trainer.core.files import hash_file, hash_json
from audiox_trainer.trainer.data import shards
from audiox_trainer.trainer.data.record import COLUMNS, Record
from audiox_trainer.trainer.data.shards import DamagedError, ShardError, ShardWriter, check_shards, read_features
from tests.helpers.read_records import read_records

CODEC = CodecConfig("logmel", sample_rate=8000, audio_channels=1, hop=512, frames=8, latent_channels=16)
TEXT = TextConfig("words", dim=32, max_tokens=24)
VIDEO = VideoConfig("frames", dim=6, image_rate=5.0, motion_rate=10.0, size=16, steps=4, pool=2)


def record(index=0, video=True, **changes):
    rng = np.random.default_rng(index)
    made = Record(
        id=f"clip-{index}",
        domain="audio",
        latent_mean=rng.standard_normal((8, 16)).astype(np.float32),
        latent_std=rng.random((8, 16)).astype(np.float32),
        image=rng.standard_normal((3 if video else 0, 6)).astype(np.float32),
        motion=rng.standard_normal((4 if video else 0, 6)).astype(np.float32),
        captions=["a dog", "Hündin"] if index % 2 else [],
        annotation={"category": {"dog": 2, "rain": None}, "extra": {"kit": ["x"]}},
        seconds=0.25,
        preceding=rng.standard_normal((index % 3, 16)).astype(np.float32),
    )
    return replace(made, **changes)


def write(folder, count=20, size_limit=4000):
    with ShardWriter(folder, CODEC, TEXT, VIDEO, size_limit=size_limit) as writer:
        for i in range(count):
            writer.write(record(i, video=i % 3 > 0))
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("shards") / "some")


@pytest.fixture
def folder(written, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(written, tmp_path / "copy")


def leftovers(path):
    return [entry for entry in path.iterdir() if "partial" in entry.name]


def test_what_is_written_comes_back(written):
    assert len(list(written.glob("*.mds"))) > 2
    records = read_records(written, VIDEO.dim)
    assert len(records) == 20
    for i, found in enumerate(records):
        given = record(i, video=i % 3 > 0)
        for name in COLUMNS:
            value, expected = getattr(found, name), getattr(given, name)
            if isinstance(expected, np.ndarray):
                assert value.dtype == np.float16 and value.shape == expected.shape
                np.testing.assert_array_equal(value, expected.astype(np.float16))
            else:
                assert value == expected and type(value) is type(expected)


def test_shards_of_earlier_revisions_are_read(tmp_path, monkeypatch):
    """They have no column of what precedes a clip."""
    monkeypatch.setattr(shards, "COLUMNS", {name: kind for name, kind in COLUMNS.items() if name != "preceding"})
    folder = write(tmp_path / "older", 6)
    monkeypatch.undo()
    assert "preceding" not in json.loads((folder / "index.json").read_text())["shards"][0]["column_names"]
    check_shards(folder, hashes=True)
    found = read_records(folder, VIDEO.dim)
    assert [r.id for r in found] == [f"clip-{i}" for i in range(6)] and {r.preceding.shape for r in found} == {(0, 16)}


def test_features_say_what_is_there(written):
    features = read_features(written)
    assert (features.codec, features.text, features.video) == (CODEC, TEXT, VIDEO)
    assert (features.samples, features.domains, features.seconds) == (20, {"audio": 20}, 5.0)
    check_shards(written, hashes=True)
    check_shards(written, hashes=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "id must not be empty"),
        ({"domain": "speech"}, "domain 'speech'"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"seconds": 0.6}, r"seconds is 0.6, must be above 0 and at most 0.512"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"captions": ["a", " "]}, "captions must be texts"),
        ({"annotation": {"a": float("nan")}}, "annotation is not JSON"),
        ({"annotation": {"a": {1, 2}}}, "annotation is not JSON"),
        ({"latent_mean": np.zeros((16, 8))}, r"latent_mean: shape \(16, 8\), the configuration says \(8, 16\)"),
        ({"latent_mean": np.full((8, 16), np.inf)}, "latent_mean: 128 values are not finite"),
        ({"latent_std": np.full((8, 16), 70_000.0)}, "latent_std: magnitude 70000 does not fit into float16"),
        ({"latent_std": np.zeros((8, 16), int)}, "latent_std: dtype int64"),
        ({"image": np.zeros((3, 7))}, r"image: shape \(3, 7\)"),
        ({"motion": np.zeros((5, 6))}, r"motion: shape \(5, 6\)"),
        ({"motion": np.zeros((0, 6))}, "3 image and 0 motion features; give both or neither"),
        ({"preceding": np.zeros((9, 16))}, "preceding: 9 latent frames, at most a clip of 8"),
        ({"preceding": np.zeros((2, 15))}, r"preceding: shape \(2, 15\), the configuration says \(2, 16\)"),
    ],
)
def test_a_record_that_does_not_fit(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message), ShardWriter(tmp_path / "out", CODEC, TEXT, VIDEO) as writer:
        writer.write(record())
        writer.write(record(1, **changes))
    assert list(tmp_path.iterdir()) == [], "neither the folder nor its unfinished form may stay"


def test_repeated_id_and_nothing_written(tmp_path):
    with (
        pytest.raises(ValueError, match="'clip-0' was already written"),
        ShardWriter(tmp_path / "out", CODEC, TEXT, VIDEO) as writer,
    ):
        writer.write(record())
        writer.write(record())
    with pytest.raises(ValueError, match="no record was written"), ShardWriter(tmp_path / "out", CODEC, TEXT, VIDEO):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(ValueError, match=r"out exists already .*choose another"):
        ShardWriter(tmp_path / "out", CODEC, TEXT, VIDEO)
    # It may also appear while another run writes.
    with pytest.raises(ValueError, match="exists already"), ShardWriter(tmp_path / "b", CODEC, TEXT, VIDEO) as writer:
        writer.write(record())
        (tmp_path / "b").mkdir()
    assert (tmp_path / "out" / "mine").read_text() == "precious"
    assert not leftovers(tmp_path)


def test_nothing_is_there_before_the_end(tmp_path):
    with ShardWriter(tmp_path / "out", CODEC, TEXT, VIDEO, size_limit=2000) as writer:
        for i in range(6):
            writer.write(record(i))
        assert not (tmp_path / "out").exists()
        (partial,) = leftovers(tmp_path)
        assert list(partial.glob("*.mds")) and not (partial / "features.json").exists()
    assert (tmp_path / "out" / "features.json").exists() and not leftovers(tmp_path)


def test_a_disk_without_room(tmp_path):
    """A limit on the size of files makes a write fail as a full disk does."""
    (tmp_path / "before").write_text("precious")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=r"could not write sample \d+ of .*out.*nothing else was touched"):
            write(tmp_path / "out", count=200, size_limit=50_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["before"]


def test_the_writer_checks_what_lies_on_the_disk(tmp_path):
    with (
        pytest.raises(ShardError, match=r"shard\.00001\.mds has changed"),
        ShardWriter(tmp_path / "out", CODEC, TEXT, VIDEO, size_limit=2000) as writer,
    ):
        for i in range(9):
            writer.write(record(i))
        (partial,) = leftovers(tmp_path)
        flip(partial / "shard.00001.mds")
    assert list(tmp_path.iterdir()) == []


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def reseal(folder):
    """Writes the hashes that fit the changed files, as another program would have."""
    index, features = folder / "index.json", folder / "features.json"
    if index.is_file() and features.is_file():
        edit(features, index_hash=hash_file(index))
        edit(features, checksum=hash_json(json.loads(features.read_text()), "checksum"))


DAMAGE = {
    "no index": (lambda f: (f / "index.json").unlink(), r"index\.json is missing"),
    "no features": (lambda f: (f / "features.json").unlink(), r"features\.json is missing"),
    "index cut": (lambda f: os.truncate(f / "index.json", 50), r"index\.json is not JSON"),
    "index a list": (lambda f: (f / "index.json").write_text("[]"), r"index\.json holds a list"),
    "index empty": (lambda f: edit(f / "index.json", shards=[]), r"index\.json: lists no shards"),
    "index foreign": (lambda f: edit(f / "index.json", shards=[{"a": 1}]), r"index\.json: no MDS index"),
    "features foreign": (lambda f: edit(f / "features.json", colour=1), r"features\.json: colour: unknown key"),
    "features old": (lambda f: edit(f / "features.json", format=0), r"features\.json: format 0, not 2; prepare"),
    "samples differ": (lambda f: edit(f / "features.json", samples=9), r"index\.json counts 20 samples.* 9"),
    "no shard": (lambda f: (f / "shard.00001.mds").unlink(), r"shard\.00001\.mds is missing"),
    "shard cut": (lambda f: os.truncate(f / "shard.00001.mds", 999), r"shard\.00001\.mds has 999 bytes, its index"),
    "shard empty": (lambda f: os.truncate(f / "shard.00000.mds", 0), r"shard\.00000\.mds has 0 bytes"),
    "count wrong": (lambda f: flip(f / "shard.00001.mds", 0), r"shard\.00001\.mds holds \d+ samples, its index"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("hashes", [False, True])
def test_damage_is_named(folder, kind, hashes):
    damage, message = DAMAGE[kind]
    damage(folder)
    reseal(folder)
    with pytest.raises(ShardError, match=message):
        check_shards(folder, hashes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit(f / "index.json", version=3), r"index\.json has changed: its hash is not that in features"),
        (lambda f: edit(f / "features.json", seconds=4.0), r"features\.json has changed: its checksum"),
    ],
)
def test_index_and_features_cannot_change(folder, damage, message):
    damage(folder)
    with pytest.raises(DamagedError, match=message):
        check_shards(folder, hashes=False)


@pytest.mark.parametrize("at", [100, 2000, -1])
def test_a_flipped_bit_is_found_by_its_hash(folder, at):
    flip(folder / "shard.00002.mds", at)
    check_shards(folder, hashes=False)
    with pytest.raises(ShardError, match=r"shard\.00002\.mds has changed"):
        check_shards(folder, hashes=True)


def test_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(ShardError, match="nowhere is not a folder of shards"):
        check_shards(tmp_path / "nowhere", hashes=False)
    with pytest.raises(ShardError, match="is missing: the folder is empty"):
        check_shards(tmp_path, hashes=False)


def test_an_index_cannot_lead_elsewhere(folder):
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["raw_data"]["basename"] = "../copy/shard.00000.mds"
    (folder / "index.json").write_text(json.dumps(index))
    reseal(folder)
    with pytest.raises(ShardError, match="is missing"):
        check_shards(folder, hashes=False)


def test_samples_without_latents(folder):
    """Training and the discriminator of a distillation learn from latents, so they are required."""
    index = json.loads((folder / "index.json").read_text())
    for shard in index["shards"]:
        for column in ("latent_mean", "latent_std"):
            place = shard["column_names"].index(column)
            for values in (shard["column_names"], shard["column_encodings"], shard["column_sizes"]):
                del values[place]
    (folder / "index.json").write_text(json.dumps(index))
    reseal(folder)
    with pytest.raises(ShardError, match=r"index\.json: no column latent_mean, latent_std, there are .*prepare the"):
        check_shards(folder, hashes=False)


def test_columns_of_another_program(folder):
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["column_encodings"][0] = "pkl"
    (folder / "index.json").write_text(json.dumps(index))
    reseal(folder)
    with pytest.raises(ShardError, match=r"index\.json: columns .*'pkl'"):
        check_shards(folder, hashes=False)
