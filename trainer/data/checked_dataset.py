"""A dataset of mosaicml-streaming that refuses shards which are missing or were changed."""

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from .bucket_cache import damaged_in_cache
from .shards import SHARD_HASH, BucketError, DamagedError, ShardError, check_hash
from .storage import is_missing, is_temporary
from .streaming_library import Stream, StreamingDataset, World

__all__ = ["CheckedDataset", "Stream", "World"]


class CheckedDataset(StreamingDataset):
    """Adds the number of its stream to every sample; reads shards of a disk or a bucket and refuses changed ones."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.checked: set[int] = set()  # shards whose hash this process has compared
        self.failed: BaseException | None = None  # the error that ended one of streaming's threads

    def __iter__(self) -> Iterator[Any]:
        """Raise the error of streaming's download thread, after which it would silently end the epoch."""
        try:
            yield from super().__iter__()
        except RuntimeError:
            if self.failed is None:
                raise
        if self.failed is not None:
            raise self.failed

    def _each_sample_id(self, it: Any) -> Iterator[int]:
        """Stop streaming's threads when an epoch is left early: they would poll for samples 140 times per second."""
        try:
            yield from super()._each_sample_id(it)
        except GeneratorExit:
            it.non_blocking_exit()
            raise

    def on_exception(self, future: Future[Any]) -> None:
        """Keep the error and end streaming's other threads. A failed thread must count as ended: the epoch waits for
        two of its three threads, and two may fail."""
        if error := future.exception():
            self.failed = error
            self._event.set()
            self._iterator.on_exit()

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Raises ShardError for a missing shard, which streaming would try to download, and without a bucket would wait
        forever. Raises BucketError if the bucket fails."""
        file, _ = self._file(shard_id)
        if url := self._url(shard_id):
            try:
                super().prepare_shard(shard_id, blocking)
            except Exception as error:  # each storage has its own
                if is_missing(error):
                    raise DamagedError(f"{url} is missing; prepare it again") from error
                kind = BucketError if is_temporary(error) else ShardError
                raise kind(f"{error}: could not read {url}") from error
        elif not file.is_file():
            raise DamagedError(f"{file} is missing; copy the folder again or prepare it again")

    def _url(self, shard_id: int) -> str:
        """The address of a shard in a bucket; "" for one in a folder."""
        remote = self.streams[self.stream_per_shard[shard_id]].remote
        return f"{remote}/{self.shards[shard_id].file_pairs[0][0].basename}" if remote else ""

    def _file(self, shard_id: int) -> tuple[Path, str | None]:
        """The file of a shard and its hash."""
        raw, _ = self.shards[shard_id].file_pairs[0]
        stream = self.streams[self.stream_per_shard[shard_id]]
        return Path(stream.local, stream.split, raw.basename), raw.hashes.get(SHARD_HASH)

    def get_item(self, sample_id: int, retry: int = 7) -> Any:
        shard, _ = self.spanner[sample_id]
        if shard not in self.checked:
            self.prepare_shard(shard)
            self._check(shard)
            self.checked.add(shard)
        try:
            sample = super().get_item(sample_id, retry)
        except Exception:  # streaming and its decoders raise many kinds
            self._check(shard)  # it may have changed since it was compared
            raise
        sample["stream"] = int(self.stream_per_shard[shard])
        return sample

    def _check(self, shard_id: int) -> None:
        try:
            check_hash(*self._file(shard_id))
        except DamagedError as error:
            url = self._url(shard_id)
            raise (damaged_in_cache(error, url) if url else error) from None
