"""Storage for a preparation: a folder, or a bucket through the client of mosaicml-streaming.

Training reads buckets through that client in any case. fsspec would add a second one (s3fs), with retries, errors and
credentials of its own, to save about forty lines.

Names use "/" on every system. A file appears whole or not at all, and replaces one of the same name.
"""

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import tenacity

from ..core.addresses import BUCKETS, address_problem
from ..core.cli import ExitCode
from ..core.credentials import redacted
from ..core.files import partial_path, private_folder, sync

ATTEMPTS = 5  # to reach a bucket: 1, 2, 4 and 8 seconds apart
TEMPORARY = "work/temporary"

# Errors of storage libraries for no answer, or one that stops in the middle.
CONNECTION_ERRORS = {
    "ConnectionError",
    "TimeoutError",
    "HTTPClientError",
    "IncompleteReadError",
    "RetriesExceededError",
}


Result = TypeVar("Result")


class StorageUnavailableError(OSError):
    """A storage failed or did not answer in several attempts."""

    exit_code = ExitCode.HUNG  # a restart may succeed


def open_store(path: str) -> "Store":
    """Raises ValueError for an unknown kind of address, OSError if a bucket does not answer."""
    return BucketStore(path) if is_remote(path) else FolderStore(Path(path))


def is_remote(path: str) -> bool:
    return "://" in path


def scratch_folder(path: str) -> Path:
    """A folder on this machine for files that need not be kept. For a bucket, one per address.

    Raises ValueError if another user has made that one.
    """
    if not is_remote(path):
        return Path(path, "work")
    name = hashlib.sha256(path.rstrip("/").encode()).hexdigest()[:12]
    return private_folder(Path(tempfile.gettempdir(), f"prepare-{os.getuid()}-{name}"))


class FolderStore:
    """A folder on a disk that all machines share."""

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; choose another --out")
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def names(self, prefix: str) -> set[str]:
        """The names of all finished files that begin with `prefix`."""
        top, names = self.path / prefix.rpartition("/")[0], set[str]()
        for folder, folders, files in os.walk(top, onerror=_ignore_removed):
            place = Path(folder).relative_to(self.path).as_posix()
            if place == Path(TEMPORARY).parent.as_posix():
                folders[:] = [name for name in folders if name != Path(TEMPORARY).name]
            names |= {name if place == "." else f"{place}/{name}" for name in files}
        return {name for name in names if name.startswith(prefix)}

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes | None:
        """None if there is no such file."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        """Bytes; None if there is no such file, or if asking would take a request."""
        try:
            return (self.path / name).stat().st_size
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes, durable: bool = True) -> None:
        """A file that need not survive a power cut is written faster. Raises OSError with a sentence."""
        with self.scratch() as folder:
            file = folder / "file"
            with self._explain(name):
                file.write_bytes(data)
            self.put(file, name, durable)

    def put(self, file: Path, name: str, durable: bool = True) -> None:
        """Move a file from a `scratch` folder here. Raises OSError with a sentence."""
        target = self.path / name
        with self._explain(name):
            target.parent.mkdir(parents=True, exist_ok=True)
            if durable:
                sync(file)
            file.replace(target)  # after a power cut the same command repeats it

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A temporary folder for files that will be put; on the same disk, so that a rename moves them."""
        folder = self.path / TEMPORARY / uuid.uuid4().hex
        with self._explain(TEMPORARY):
            folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def clean(self) -> None:
        """Remove all scratch folders, also those of killed processes, when the work is done."""
        shutil.rmtree(self.path / TEMPORARY, ignore_errors=True)

    @contextmanager
    def _explain(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror or error}: could not write {self.path / name}") from error


def _ignore_removed(error: OSError) -> None:
    """Another process may remove a folder during the walk; any other error is raised."""
    if not isinstance(error, FileNotFoundError):
        raise error


class BucketStore:
    """The same in a bucket of an object storage; credentials and S3_ENDPOINT_URL come from the environment."""

    def __init__(self, url: str) -> None:
        rest = url.partition("://")[2]
        if address_problem(url, BUCKETS) or not rest.strip("/"):
            schemes = ", ".join(f"{name}://" for name in BUCKETS)
            raise ValueError(f"{redacted(url)}: expected a folder, or BUCKET/FOLDER after one of {schemes}")
        from .streaming_library import CloudUploader, check_client

        check_client(url)
        self.url = url.rstrip("/")
        self._local = tempfile.TemporaryDirectory(prefix="prepare-")
        with self._explain("reach"):
            self._uploader = CloudUploader.get((self._local.name, self.url), retry=ATTEMPTS, exist_ok=True)

    def __str__(self) -> str:
        return self.url

    def names(self, prefix: str) -> set[str]:
        with self._explain("list", prefix):
            keys: list[str] = _retry(lambda: self._uploader.list_objects(prefix))
        base = self.url.partition("://")[2].partition("/")[2]
        return {key.removeprefix(base).lstrip("/") for key in keys}

    def has(self, name: str) -> bool:
        return name in self.names(name)

    def read(self, name: str) -> bytes | None:
        if not self.has(name):
            return None
        with self.scratch() as folder:
            download(f"{self.url}/{name}", folder / "file")
            return (folder / "file").read_bytes()

    def size(self, name: str) -> int | None:
        return None

    def write(self, name: str, data: bytes, durable: bool = True) -> None:
        with self.scratch() as folder:
            file = folder / "file"
            file.write_bytes(data)
            self.put(file, name)

    def put(self, file: Path, name: str) -> None:
        # The uploader takes files from its own folder and removes them.
        place = Path(self._local.name, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
        with self._explain("write", name):
            self._uploader.upload_file(name)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self._local.name) as folder:
            yield Path(folder)

    def clean(self) -> None:
        """Nothing: the scratch folder of a killed process is in the temporary folder of its machine."""

    @contextmanager
    def _explain(self, what: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every storage has its own kinds
            raise OSError(f"{error}: could not {what} {self.url}/{name}") from error


Store = FolderStore | BucketStore


def download(url: str, file: Path) -> None:
    """Fetch a file whole or not at all. Raises OSError with a sentence, ValueError without the storage's client."""
    from .streaming_library import CloudDownloader, check_client

    check_client(url)
    partial = partial_path(file)
    try:
        _retry(lambda: CloudDownloader.direct_download(url, str(partial)))
        partial.replace(file)  # unsynced, unlike `published`: what a power cut takes is fetched again
    except Exception as error:  # every storage has its own kinds
        kind = StorageUnavailableError if is_temporary(error) else OSError
        raise kind(f"{error}: could not read {url}") from error
    finally:
        partial.unlink(missing_ok=True)


def _retry(action: Callable[[], Result]) -> Result:
    attempts, wait = tenacity.stop_after_attempt(ATTEMPTS), tenacity.wait_exponential()
    return tenacity.Retrying(stop=attempts, wait=wait, reraise=True)(action)


def is_temporary(error: Exception) -> bool:
    """Whether an error may be temporary: a server error (5xx), too many requests, or no answer."""
    status = _status(error)
    return status >= 500 or status == 429 or any(kind.__name__ in CONNECTION_ERRORS for kind in type(error).__mro__)


def is_missing(error: Exception) -> bool:
    """Whether a storage has no such file."""
    return _status(error) == 404


def _status(error: Exception) -> int:
    """The HTTP status in an error of S3; 0 if there is none."""
    response = getattr(error, "response", None)
    return int(response["ResponseMetadata"].get("HTTPStatusCode", 0)) if isinstance(response, dict) else 0
