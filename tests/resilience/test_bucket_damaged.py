"""Streams in a bucket that fails, is slow or is damaged, and fetched shards that are damaged here."""

import json
import math
import re
import shutil
import threading

import pytest

from audiox_trainer.models import strict
from audiox_trainer.trainer.core.cli import ExitCode, exit_code_of
from audiox_trainer.trainer.data import storage
from audiox_trainer.trainer.data.reader import check_streams
from audiox_trainer.trainer.data.shards import BucketError, DamagedError, ShardError
from audiox_trainer.trainer.data.storage import StorageUnavailableError
from audiox_trainer.trainer.data.streaming_library import StreamingDataset
from tests.helpers.faulty_bucket import Bucket
from tests.helpers.faulty_rank import DAMAGE, cut, flip
from tests.helpers.reader_ranks import open_reader
from tests.helpers.small_config import small_config
from tests.helpers.supervised_runs import RANKS, SETTINGS, Run

pytestmark = pytest.mark.slow
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.fixture
def bucket(scenes, tmp_path, monkeypatch):
    """A bucket with a copy of the scenes; clients try twice at most, without a pause."""
    for name, value in (("ACCESS_KEY_ID", "nobody"), ("SECRET_ACCESS_KEY", SECRET), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    with Bucket(shutil.copytree(scenes, tmp_path / "far")) as served:
        monkeypatch.setenv("S3_ENDPOINT_URL", served.address)
        yield served


def far_config(folder, *overrides):
    """The small model's configuration, with both streams in the bucket and a cache in the folder."""
    streams = [f"data.streams.{i}.path=s3://far/{name}" for i, name in enumerate(("audio", "music"))]
    return small_config(None, *streams, f"data.cache={folder}/cache", *overrides)


def cached(folder, stream="audio"):
    """A fetched shard."""
    return folder / "cache" / "s3" / "far" / stream / "shard.00000.mds"


def epoch(config):
    """The reader's whole first epoch."""
    batches = open_reader(config).batches(0)
    return [next(batches).ids for _ in range(9)]


class TestInTheCache:
    @pytest.fixture
    def filled(self, bucket, tmp_path):
        """A configuration whose shards have all been fetched."""
        config = far_config(tmp_path)
        epoch(config)
        assert cached(tmp_path).is_file() and cached(tmp_path, "music").is_file()
        return config

    def test_a_shard_that_was_cut_is_to_be_removed(self, filled, tmp_path):
        cut(cached(tmp_path))
        with pytest.raises(DamagedError, match=r"has 2000 bytes, its index says \d+; remove it, it is fetched again"):
            check_streams(filled, hashes=False)
        cached(tmp_path).unlink()
        check_streams(filled, hashes=True)

    def test_one_that_was_flipped_is_refused_when_it_is_read(self, filled, tmp_path):
        flip(cached(tmp_path))
        with pytest.raises(DamagedError, match=r"shard\.00000\.mds has changed.*; remove it, it is fetched again") as e:
            epoch(filled)
        assert exit_code_of(e.value) is ExitCode.CORRUPT

    @pytest.mark.long
    def test_one_that_is_missing_is_fetched_again(self, filled, tmp_path):
        before = epoch(filled)
        cached(tmp_path).unlink()
        assert epoch(filled) == before and cached(tmp_path).is_file()


class TestAFailingOne:
    def test_shards_that_it_never_gives_may_come_another_time(self, bucket, tmp_path):
        bucket.failures = math.inf
        with pytest.raises(BucketError, match=r"500.*: could not read s3://far/\w+/shard\.00000\.mds") as caught:
            epoch(far_config(tmp_path))
        assert exit_code_of(caught.value) is ExitCode.HUNG

    def test_that_fails_two_of_streaming_s_threads_at_once(self, bucket, tmp_path, monkeypatch):
        both = threading.Barrier(2)

        def fail(dataset, shard, blocking=True):
            both.wait(timeout=600)
            raise OSError("500")

        monkeypatch.setattr(StreamingDataset, "prepare_shard", fail)
        with pytest.raises(ShardError, match=r"500: could not read s3://far/\w+/shard\.00000\.mds"):
            epoch(far_config(tmp_path))

    def test_at_the_start_too(self, bucket, tmp_path):
        bucket.failing, bucket.failures = "index.json", math.inf
        with pytest.raises(
            StorageUnavailableError, match=r"500.*: could not read s3://far/audio/index\.json"
        ) as caught:
            check_streams(far_config(tmp_path), hashes=False)
        assert exit_code_of(caught.value) is ExitCode.HUNG

    @pytest.mark.long
    def test_nobody_answers(self, bucket, tmp_path, monkeypatch):
        monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(StorageUnavailableError, match="Could not connect"):
            check_streams(far_config(tmp_path), hashes=False)

    def test_what_it_does_not_have_is_a_mistake(self, bucket, tmp_path):
        shutil.rmtree(bucket.folder / "audio")
        with pytest.raises(OSError, match=r"could not read s3://far/audio/") as caught:
            check_streams(far_config(tmp_path), hashes=False)
        assert exit_code_of(caught.value) is ExitCode.FAILED


@pytest.fixture
def launched(bucket, tmp_path):
    """A run of two ranks that reads from the bucket, not yet started."""
    config = far_config(tmp_path, *SETTINGS, "training.steps=9", "zero.stage=2", "data.workers=1")
    (tmp_path / "pretrain.json").write_text(json.dumps(strict.to_dict(config)))
    run = Run("pretrain", tmp_path, "run")
    yield run
    run.clear()
    for file in run.folder.rglob("*"):
        data = file.read_bytes() if file.is_file() else b""
        assert SECRET.encode() not in data and bucket.address.encode() not in data, file


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "code"),
    [({"failures": 2}, 0), ({"failures": math.inf}, ExitCode.HUNG), ({"delay": 0.5}, 0)],
    ids=["twice", "forever", "slowly"],
)
def test_two_ranks_of_one_that_fails(bucket, launched, how, code):
    for key, value in how.items():
        setattr(bucket, key, value)
    launched.start()
    assert launched.wait(600) == [code, code], launched.said()
    assert launched.step() == (0 if code else 9)
    assert not code or "could not read s3://far/" in launched.said()


@pytest.mark.long
@pytest.mark.parametrize("kind", DAMAGE)
def test_two_ranks_of_one_whose_shards_are_damaged(bucket, launched, scenes, tmp_path, kind):
    """Named by both; prepared again, and what was fetched of them removed, the run reads them."""
    for file in bucket.folder.rglob("*.mds"):
        DAMAGE[kind](file)
    launched.start()
    assert launched.wait(600) == [ExitCode.CORRUPT] * RANKS, launched.said()
    what = "missing; prepare it again" if kind == "remove" else "damaged: prepare it again"
    for rank in range(RANKS):
        said = launched.said(rank)
        assert re.search(rf"error: .*s3://far/\w+/shard\.00000\.mds is {what}", said), said
    launched.clear()
    shutil.copytree(scenes, bucket.folder, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "cache")
    launched.start()
    assert launched.wait(600) == [0] * RANKS, launched.said()
    assert launched.step() == 9
