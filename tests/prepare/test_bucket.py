"""A preparation in a bucket: the same as in a folder, resumed after the bucket has failed, and trained on."""

import json
from itertools import islice
from urllib.request import urlopen

import boto3
import pytest
from moto.server import ThreadedMotoServer

from audiox_trainer.trainer.core.hardware import free_port
from audiox_trainer.trainer.data import storage
from audiox_trainer.trainer.data.reader import check_streams
from audiox_trainer.trainer.data.shards import DamagedError
from audiox_trainer.trainer.data.storage import open_store
from audiox_trainer.trainer.prepare.cost_file import COST_FILE
from audiox_trainer.trainer.prepare.prepare_files import prepare_files
from tests.helpers.killing import prepare_under_fire
from tests.helpers.preparation import MODEL, contents, manifest, sound
from tests.helpers.reader_ranks import open_reader
from tests.helpers.small_config import small_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forkserver")]


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of an S3-compatible server on this machine."""
    for name, value in (("ACCESS_KEY_ID", "nobody"), ("SECRET_ACCESS_KEY", "nothing"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("S3_ENDPOINT_URL", address)
    server = ThreadedMotoServer("127.0.0.1", int(address.rpartition(":")[2]), verbose=False)
    server.start()
    urlopen(f"{address}/moto-api/reset", data=b"").close()  # what it holds outlasts it
    client = boto3.client("s3", endpoint_url=address)
    client.create_bucket(Bucket="sounds")
    yield client
    server.stop()


def objects(client, folder):
    """The same as `contents` of a folder."""
    found = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="sounds", Prefix=f"{folder}/"):
        for item in page.get("Contents", []):
            name = item["Key"].removeprefix(f"{folder}/")
            if name != COST_FILE:
                found[name] = client.get_object(Bucket="sounds", Key=item["Key"])["Body"].read()
    return found


@pytest.fixture
def made(tmp_path):
    for i in range(6):
        sound(tmp_path / f"{i}.flac", 1.0 + i)
    lines = [{"audio": f"{i}.flac", "category": {"bell": 2}} for i in range(6)]
    path = manifest(tmp_path, *lines, {"audio": "nowhere.flac"})
    prepare_files(str(tmp_path / "out"), MODEL, path, seed=0, workers=1)
    return path, contents(tmp_path / "out")


def test_the_same_as_in_a_folder(bucket, made):
    path, expected = made
    summary = prepare_files("s3://sounds/mine", MODEL, path, seed=0, workers=1)
    assert str(summary).startswith("kept 12 audio clips (21.0 s of sound), rejected 1 missing; took ")
    assert objects(bucket, "mine") == expected
    assert prepare_files("s3://sounds/mine", MODEL, path, seed=0, workers=1) == summary, "finished already"
    with pytest.raises(ValueError, match="s3://sounds/mine was started with seed 0, this command has 1; keep"):
        prepare_files("s3://sounds/mine", MODEL, path, seed=1, workers=1)


def test_a_bucket_that_fails(bucket, made, monkeypatch):
    """It answers no more after some files, and later again."""
    path, expected = made
    whole, names = storage.BucketStore.put, []

    def put(self, file, name):
        names.append(name)
        if len(names) == 5:  # of the driver: the plan and records of blocks
            self._uploader.s3 = boto3.client("s3", endpoint_url="http://127.0.0.1:9")
        whole(self, file, name)

    monkeypatch.setattr(storage.BucketStore, "put", put)
    with pytest.raises(
        OSError, match=r"Could not connect.*: could not \w+ s3://sounds/mine/.*; finished work stays in"
    ):
        prepare_files("s3://sounds/mine", MODEL, path, seed=0, workers=1)
    monkeypatch.setattr(storage.BucketStore, "put", whole)
    before = objects(bucket, "mine")
    assert any(name.startswith("work/blocks/") for name in before) and "audio/features.json" not in before
    prepare_files("s3://sounds/mine", MODEL, path, seed=0, workers=1)
    assert objects(bucket, "mine") == expected


@pytest.mark.parametrize(
    ("out", "kind", "message"),
    [
        ("ftp://sounds/mine", ValueError, "expected a folder, or BUCKET/FOLDER after one of s3://, "),
        ("s3://", ValueError, "expected a folder, or BUCKET"),
        ("s3://silence/mine", OSError, r"404.*Not Found: could not reach s3://silence/mine"),
    ],
)
def test_addresses_that_cannot_be(bucket, out, kind, message):
    with pytest.raises(kind, match=message):
        open_store(out)


def test_training_reads_it(bucket, made, tmp_path):
    """An epoch through the reader: every sample once; what was fetched is checked at the next start."""
    path, _ = made
    model = small_config().model
    prepare_files("s3://sounds/mine", model, path, seed=0, workers=1)
    stream = json.dumps([{"path": "s3://sounds/mine/audio", "tasks": {"T2A": 1.0}}])
    overrides = f"data.streams={stream}", f"data.cache={tmp_path}/cache", "data.canonical_nodes=1"
    config = small_config(None, *overrides, "training.global_batch=4")
    seen = [id for batch in islice(open_reader(config).batches(0), 3) for id in batch.ids]
    assert len(set(seen)) == 12
    folder = tmp_path / "cache/s3/sounds/mine/audio"
    assert {file.name for file in folder.iterdir() if file.is_file()} == {"features.json", "index.json"}
    shard = next(folder.glob("*/shard.00000.mds"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedError, match=f"{shard} has changed"):
        check_streams(config, hashes=True)
    shard.unlink()
    assert check_streams(config, hashes=True) == 12
    (folder / "index.json").write_text("{}")
    with pytest.raises(
        DamagedError, match=r"index\.json is not that of s3://sounds/mine/audio, which is another one now"
    ):
        check_streams(config, hashes=False)


def test_a_stream_in_a_bucket_wants_a_folder_here():
    stream = json.dumps([{"path": "s3://sounds/mine/audio", "tasks": {"T2A": 1.0}}])
    with pytest.raises(ValueError, match=r"data\.cache: missing; s3://sounds/mine/audio needs a local folder"):
        small_config(None, f"data.streams={stream}")


@pytest.mark.long
def test_killed_at_random_moments(tmp_path, bucket):
    """The same as in a folder: makers and drivers are killed, and others continue."""
    for i in range(16):
        sound(tmp_path / f"{i}.flac", 1.0 + 4 * (i % 4))
    path = manifest(tmp_path, *({"audio": f"{i}.flac", "category": {"bell": 2}} for i in range(16)))
    prepare_files(str(tmp_path / "out"), MODEL, path, seed=0, workers=1)
    prepare_under_fire("s3://sounds/mine", path, 2, 0, drivers=2, shots=6, finished=lambda _: blocks(bucket))
    assert objects(bucket, "mine") == contents(tmp_path / "out")


def blocks(client):
    """The time at which each block was finished."""
    listed = client.list_objects_v2(Bucket="sounds", Prefix="mine/work/blocks/").get("Contents", [])
    return {item["Key"]: item["LastModified"].timestamp() for item in listed}
