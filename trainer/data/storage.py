"""Where a preparation is written: a folder, or a bucket with what mosaicml-streaming knows of it.

Names have "/" between their parts, whatever the system. What is written appears whole or not at all, and replaces what
had its name.
"""

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Container, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from ..core.cli import ExitCode
from ..core.files import sync
from .streaming_library import CloudDownloader, CloudUploader, retry

SCHEMES = ("s3", "gs", "oci", "alipan")  # of which mosaicml-streaming lists objects, too
ATTEMPTS = 5  # at a bucket: 1, 2, 4 and 8 seconds apart
TEMPORARY = "work/temporary"


# Of what storages' libraries raise where nobody answers, or somebody stops in the middle; each has its own.
UNANSWERED = {"ConnectionError", "TimeoutError", "HTTPClientError", "IncompleteReadError", "RetriesExceededError"}


class UnansweredError(OSError):
    """A storage failed or did not answer, for longer than it was asked again."""

    exit_code = ExitCode.HUNG  # it may go well another time


class Store(Protocol):
    """Files that all ranks can reach."""

    def names(self, under: str) -> set[str]:
        """Of all files whose name begins so; what is not finished has no name."""
        ...

    def has(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes | None:
        """None where there is no such file."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes; None where there is no such file, or asking would take a request of its own."""
        ...

    def write(self, name: str, data: bytes, lasting: bool = True) -> None:
        """What need not outlast a power cut is written faster. Raises OSError with a sentence."""
        ...

    def put(self, file: Path, name: str) -> None:
        """Moves a file from a `scratch` folder there. Raises OSError with a sentence."""
        ...

    def scratch(self) -> AbstractContextManager[Path]:
        """A folder with room for what is to be written, gone afterwards."""
        ...

    def clean(self, living: Container[int]) -> None:
        """Removes what killed ranks have left in their scratch folders."""
        ...


def open_store(path: str, rank: int) -> Store:
    """Raises ValueError for an address of an unknown kind, OSError where a bucket does not answer."""
    return BucketStore(path) if is_remote(path) else FolderStore(Path(path), rank)


def is_remote(path: str) -> bool:
    return "://" in path


def scratch_folder(path: str) -> Path:
    """On this machine, for what a preparation there need not keep. Of a bucket, one for each address."""
    if not is_remote(path):
        return Path(path, "work")
    name = hashlib.sha256(path.rstrip("/").encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir(), f"prepare-{os.getuid()}-{name}")


class FolderStore:
    """On a disk, which ranks on several machines share."""

    def __init__(self, path: Path, rank: int) -> None:
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; choose another --out")
        self.path = path
        self._scratch = path / TEMPORARY / f"{rank:05d}"
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __str__(self) -> str:
        return str(self.path)

    def names(self, under: str) -> set[str]:
        top, names = self.path / under.rpartition("/")[0], set[str]()
        for folder, folders, files in os.walk(top, onerror=_ignore_removed):
            place = Path(folder).relative_to(self.path).as_posix()
            if place == Path(TEMPORARY).parent.as_posix():
                folders[:] = [name for name in folders if name != Path(TEMPORARY).name]
            names |= {name if place == "." else f"{place}/{name}" for name in files}
        return {name for name in names if name.startswith(under)}

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        try:
            return (self.path / name).stat().st_size
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes, lasting: bool = True) -> None:
        with self.scratch() as folder:
            file = folder / "file"
            with self._saying(name):
                file.write_bytes(data)
            self.put(file, name, lasting)

    def put(self, file: Path, name: str, lasting: bool = True) -> None:
        target = self.path / name
        with self._saying(name):
            target.parent.mkdir(parents=True, exist_ok=True)
            if lasting:
                sync(file)
            file.replace(target)  # a power cut may undo it, and then the same command does it again

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """On the same disk, so that a rename moves a file to its place."""
        folder = self._scratch / uuid.uuid4().hex[:8]
        with self._saying(TEMPORARY):
            folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def clean(self, living: Container[int]) -> None:
        for folder in (self.path / TEMPORARY).glob("*"):
            if int(folder.name) not in living:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _saying(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror or error}: could not write {self.path / name}") from error


def _ignore_removed(error: OSError) -> None:
    """Another rank may remove a folder while it is looked through; what else keeps from looking is told."""
    if not isinstance(error, FileNotFoundError):
        raise error


class BucketStore:
    """Of an object storage; credentials and S3_ENDPOINT_URL come from the environment."""

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        if scheme not in SCHEMES or not rest.strip("/"):
            schemes = ", ".join(f"{name}://" for name in SCHEMES)
            raise ValueError(f"{url}: expected a folder, or BUCKET/FOLDER behind one of {schemes}")
        self.url = url.rstrip("/")
        self._local = tempfile.TemporaryDirectory(prefix="prepare-")
        with self._saying("reach"):
            self._uploader = CloudUploader.get((self._local.name, self.url), retry=ATTEMPTS, exist_ok=True)

    def __str__(self) -> str:
        return self.url

    def names(self, under: str) -> set[str]:
        with self._saying("list", under):
            keys: list[str] = retry(num_attempts=ATTEMPTS)(lambda: self._uploader.list_objects(under))()
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

    def write(self, name: str, data: bytes, lasting: bool = True) -> None:
        with self.scratch() as folder:
            file = folder / "file"
            file.write_bytes(data)
            self.put(file, name)

    def put(self, file: Path, name: str) -> None:
        # The uploader knows a file by its place under its own folder, and removes it.
        place = Path(self._local.name, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
        with self._saying("write", name):
            self._uploader.upload_file(name)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self._local.name) as folder:
            yield Path(folder)

    def clean(self, living: Container[int]) -> None:
        """What a killed rank has left lies in the system's temporary folder on its own machine."""

    @contextmanager
    def _saying(self, what: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each storage has its own
            raise OSError(f"{error}: could not {what} {self.url}/{name}") from error


def download(url: str, file: Path) -> None:
    """Raises OSError with a sentence; the file is whole or not there."""
    beside = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        retry(num_attempts=ATTEMPTS)(lambda: CloudDownloader.direct_download(url, str(beside)))()
        beside.replace(file)
    except Exception as error:  # each storage has its own
        kind = UnansweredError if is_unanswered(error) else OSError
        raise kind(f"{error}: could not read {url}") from error
    finally:
        beside.unlink(missing_ok=True)


def is_unanswered(error: Exception) -> bool:
    """Whether a storage's error may not come another time: its own (5xx), too many requests, or no answer."""
    status = _status(error)
    return status >= 500 or status == 429 or any(kind.__name__ in UNANSWERED for kind in type(error).__mro__)


def is_missing(error: Exception) -> bool:
    """Whether a storage says that it holds no such file."""
    return _status(error) == 404


def _status(error: Exception) -> int:
    """HTTP's, of an error of S3; 0 for none."""
    response = getattr(error, "response", None)
    return int(response["ResponseMetadata"].get("HTTPStatusCode", 0)) if isinstance(response, dict) else 0
