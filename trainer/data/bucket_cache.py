"""Streams in a bucket: index and features are fetched at the start, shards when first read; all are checked."""

from pathlib import Path
from tempfile import TemporaryDirectory

from .shards import DamagedError, check_shard, read_index
from .storage import download, is_remote

SMALL_FILES = ("features.json", "index.json")


def cache_folder(path: str, cache: str) -> Path:
    """The folder of a stream on this machine: its own, or one below `cache`."""
    return Path(cache, *path.split("://")) if is_remote(path) else Path(path)


def fetch_stream(path: str, cache: str, hashes: bool) -> Path:
    """Fetch the small files of a stream in a bucket, and check the shards that are already in the cache.

    With `hashes` every byte of them is read. Processes may do this at once, because they write the same files.

    Raises:
        ShardError: the bucket holds another stream now, or a file is damaged; names the file.
        StorageUnavailableError: the bucket does not answer.
        OSError: the bucket refuses, or the disk is full.
    """
    folder = cache_folder(path, cache)
    folder.mkdir(parents=True, exist_ok=True)
    for name in SMALL_FILES:
        with TemporaryDirectory(dir=folder) as temporary:
            now = Path(temporary, name)
            download(f"{path}/{name}", now)
            if (folder / name).is_file() and (folder / name).read_bytes() != now.read_bytes():
                raise DamagedError(f"{folder / name} is not that of {path}, which is another one now; remove {folder}")
            now.replace(folder / name)
    for shard in read_index(folder):
        name = shard["raw_data"]["basename"]
        if (folder / name).is_file():
            try:
                check_shard(folder, shard, hashes)
            except DamagedError as error:
                raise damaged_in_cache(error, f"{path}/{name}") from None
    return folder


def damaged_in_cache(error: DamagedError, url: str) -> DamagedError:
    """The same error for a file that was fetched from `url`, with the remedy for that case."""
    what, _, _ = str(error).rpartition("; ")
    return DamagedError(
        f"{what}; remove it, it is fetched again; if that does not help, {url} is damaged: prepare it again"
    )
