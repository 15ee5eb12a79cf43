"""Streams in a bucket: index and features are fetched at the start, shards when they are first read, each checked."""

from pathlib import Path
from tempfile import TemporaryDirectory

from .shards import DamagedError, check_shard, read_index
from .storage import download, is_remote

SMALL_FILES = ("features.json", "index.json")


def cache_folder(path: str, cache: str) -> Path:
    """Where a stream's files lie on this machine: its own folder, or below `cache`."""
    return Path(cache, *path.split("://")) if is_remote(path) else Path(path)


def fetch_stream(path: str, cache: str, hashes: bool) -> Path:
    """Brings what is small of a stream in a bucket here, and checks the shards that are here already.

    With `hashes` every byte of them is read. Processes that do this at once write the same.

    Raises:
        ShardError: the stream is another one now, or something of it is damaged; names the file.
        UnansweredError: the bucket does not answer.
        OSError: it refuses, or there is no room.
    """
    folder = cache_folder(path, cache)
    folder.mkdir(parents=True, exist_ok=True)
    for name in SMALL_FILES:
        with TemporaryDirectory(dir=folder) as beside:
            now = Path(beside, name)
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
    """The same of a file that was fetched from `url`, with what to do about that."""
    what, _, _ = str(error).rpartition("; ")
    return DamagedError(
        f"{what}; remove it, it is fetched again; if it comes back so, {url} is damaged: prepare it again"
    )
