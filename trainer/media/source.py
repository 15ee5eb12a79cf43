"""Open media: a file, or an object behind an address that fsspec opens.

An object of up to FETCH_LIMIT bytes is fetched into a nameless temporary file, which disappears with the process. A
larger one is read in parts.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Self, TypeVar

import av
import tenacity

from ..core.addresses import ADDRESS, address_problem, private_address
from ..core.credentials import redacted
from .truncation import BinaryFile, truncation

FETCH_LIMIT = 1 << 29  # bytes
ATTEMPTS = 3  # to reach an address
PAUSE = 1.0  # seconds before the second attempt; doubles with each further one
_BLOCK = 1 << 20
# A playlist is no sound: it may name addresses, and FFmpeg waits forever for a live one to continue.
_FORMATS = av.formats_available - {"hls", "dash", "concat", "sdp", "rtsp", "imf"}
# "%03d" in a name is part of the name, not a pattern for a series of pictures.
OPTIONS = {
    "format_whitelist": ",".join(sorted(_FORMATS)),
    "protocol_whitelist": "file",
    "pattern_type": "none",
}
# Formats in which a seek ends at a known place, because they have an index or time stamps to search by.
_SEEKABLE = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "wav", "w64", "flac", "ogg", "aiff", "caf", "mpegts"}

# The machine has run out of something, or a file system is away: every later file would fail as well.
_EXHAUSTED = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_AWAY = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN}

Result = TypeVar("Result")


class Reason(StrEnum):
    """The reason why a file or one of its clips is left out."""

    MISSING = "missing"
    UNREADABLE = "unreadable"  # a folder, no permission, or the disk fails
    UNREACHABLE = "unreachable"  # an address that failed several times
    PRIVATE = "private address"  # an address in this machine's own network
    UNDECODABLE = "undecodable"
    NO_AUDIO = "no audio track"
    NO_VIDEO = "no video track"
    ZERO_LENGTH = "zero length"
    SILENT = "silent"
    TRUNCATED = "truncated"
    STUCK = "stuck"
    NOT_FINITE = "features not finite"
    GAP = "gap in the time stamps"
    TOO_LONG = "too long"  # so that a small file cannot mean endless work
    TOO_SHORT = "too short"  # for what is to be done with it


class MediaError(Exception):
    """A file cannot be used. `reason` is the kind of damage; the message says where and how."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[Reason, str]]:
        return MediaError, (self.reason, str(self))  # pickle would call it with the message alone


@dataclass(frozen=True)
class MediaSource:
    """Media that can be opened several times."""

    name: str  # for messages
    _open: Callable[[], Any]  # -> a path, or a file to read and close

    @contextmanager
    def container(self) -> Iterator[av.container.InputContainer]:
        """Open with FFmpeg. Errors of opening and of decoding in the body become a MediaError with the file's name."""
        with ExitStack() as stack:
            found = self._open()
            stack.enter_context(media_errors(self.name, found if isinstance(found, str) else None))
            if not isinstance(found, str):
                stack.enter_context(found)
            yield stack.enter_context(av.open(found, metadata_errors="replace", options=OPTIONS))


@contextmanager
def open_media(location: str | Path | MediaSource, allow_private: bool = False) -> Iterator[MediaSource]:
    """Open a path or an address; a source that is open already is returned as it is.

    allow_private: an http address may lead to this machine or its network.

    Raises:
        MediaError: it is missing, unreadable, unreachable or empty, or a wav shorter than it declares.
        OSError: the disk is full, memory or file handles ran out, or a file system does not answer.
    """
    if isinstance(location, MediaSource):
        yield location
    elif isinstance(location, str) and ADDRESS.match(location):
        with _fetch(location, allow_private) as source:
            yield source
    else:
        path = Path(location).absolute()
        with media_errors(str(location)):
            if not stat.S_ISREG(path.stat().st_mode):  # a folder, or a pipe that would never end
                raise MediaError(Reason.UNREADABLE, f"{location}: not a file")
            with path.open("rb") as file:
                _check_complete(str(location), file, os.fstat(file.fileno()).st_size)
        yield MediaSource(str(location), lambda: str(path))


def check_decoder(name: str, stream: av.stream.Stream) -> None:
    """Raises MediaError where FFmpeg has no decoder for a track."""
    if getattr(stream, "codec_context", None) is None:
        raise MediaError(Reason.UNDECODABLE, f"{name}: no decoder for track {stream.index} ({stream.type})")


def file_start(container: av.container.InputContainer) -> float:
    """The time stamp in seconds of a file's earliest track, where players begin."""
    return (container.start_time or 0) / av.time_base


def seek_before(container: av.container.InputContainer, stream: av.stream.Stream, stamp: float) -> bool:
    """Seek to shortly before a time stamp in seconds; False where that is impossible. The caller checks the place."""
    if container.format.name not in _SEEKABLE or stream.time_base is None:
        return False
    try:
        container.seek(int(stamp / stream.time_base), stream=stream)
    except av.error.FFmpegError:
        return False
    return True


@contextmanager
def media_errors(name: str, path: str | None = None) -> Iterator[None]:
    """Turn errors of opening and decoding into a MediaError with the file's name.

    Raises OSError where the file is not to blame. FFmpeg reports damage as an input/output error as well: the file at
    `path` is then read from beginning to end to tell the two apart.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise MediaError(Reason.MISSING, f"{name}: no such file") from error
    except OSError as error:
        from_system = not isinstance(error, av.error.FFmpegError)
        if error.errno in _EXHAUSTED | _AWAY and (from_system or (path is not None and not _readable(path))):
            hint = (
                "" if error.errno in _EXHAUSTED else "; if this file alone fails, remove it: it then counts as missing"
            )
            raise OSError(error.errno, f"{name}: {error.strerror or error}{hint}") from error
        raise MediaError(Reason.UNREADABLE, f"{name}: {error.strerror or error}") from error
    except av.error.FFmpegError as error:
        raise MediaError(Reason.UNDECODABLE, f"{name}: {error.strerror}") from error


def _readable(path: str) -> bool:
    try:
        with open(path, "rb", buffering=0) as file:
            while file.read(_BLOCK):
                pass
    except OSError:
        return False
    return True


def _check_complete(name: str, file: BinaryFile, size: int) -> None:
    if not size:
        raise MediaError(Reason.ZERO_LENGTH, f"{name}: 0 bytes")
    if problem := truncation(file, size):
        raise MediaError(Reason.TRUNCATED, f"{name}: {problem}")


@contextmanager
def _fetch(address: str, allow_private: bool) -> Iterator[MediaSource]:
    import fsspec  # takes a tenth of a second, and most workers do not need it

    from .http_client import public_client

    name = redacted(address)
    if problem := address_problem(address):
        raise MediaError(Reason.UNREADABLE, f"{name}: {problem}")
    endpoint = os.environ.get("S3_ENDPOINT_URL")  # mosaicml-streaming uses it for shards
    options: dict[str, Any] = {}
    if endpoint and address.startswith(("s3://", "s3a://")):
        options["endpoint_url"] = endpoint
    if address.startswith(("http://", "https://")) and not allow_private:
        options["get_client"] = public_client
    files, path = _retry(name, lambda: fsspec.core.url_to_fs(address, **options))  # some connect here
    size = _retry(name, lambda: files.info(path))["size"]
    if size is not None and size > FETCH_LIMIT:
        open_parts = lambda: _RemoteFile(name, _retry(name, lambda: files.open(path, "rb")))  # noqa: E731
        with open_parts() as file:
            _check_complete(name, file, size)
        yield MediaSource(name, open_parts)
        return
    with TemporaryFile() as file:
        _retry(name, lambda: _copy(name, files, path, file))
        file.seek(0)
        _check_complete(name, file, os.fstat(file.fileno()).st_size)
        yield MediaSource(name, lambda: f"/proc/self/fd/{file.fileno()}")


class _RemoteFile:
    """A remote file that is read in parts; a read that fails is repeated."""

    def __init__(self, name: str, file: Any) -> None:
        self._name, self._file = name, file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int = -1) -> bytes:
        place = self._file.tell()

        def read() -> bytes:
            self._file.seek(place)
            data: bytes = self._file.read(size)
            return data

        return _retry(self._name, read)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())


def _copy(name: str, files: Any, path: str, file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()
    with files.open(path, "rb", block_size=0) if _streams_whole(files) else files.open(path, "rb") as remote:
        while block := remote.read(_BLOCK):
            if file.tell() + len(block) > FETCH_LIMIT:
                raise MediaError(
                    Reason.UNREADABLE,
                    f"{name}: holds more than {FETCH_LIMIT} bytes, and its server gives neither its size nor parts "
                    "of it: download it first",
                )
            file.write(block)
    file.flush()


def _streams_whole(files: Any) -> bool:
    """Whether a file system reads a whole object in one request when block_size is 0."""
    return "http" in files.protocol


def _retry(name: str, action: Callable[[], Result]) -> Result:
    """The result of an action that may fail for a moment. Raises MediaError, or OSError if the machine is at fault."""
    wait = tenacity.wait_exponential(multiplier=PAUSE)
    attempts = tenacity.stop_after_attempt(ATTEMPTS)
    try:
        return tenacity.Retrying(stop=attempts, wait=wait, retry=tenacity.retry_if_exception(_may_pass), reraise=True)(
            action
        )
    except MediaError:
        raise
    except Exception as error:  # each file system of fsspec has its own kinds
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            raise
        if _is_absent(error):
            raise MediaError(Reason.MISSING, f"{name}: no such object") from error
        if refused := private_address(error):
            raise MediaError(
                Reason.PRIVATE,
                f"{name}: leads to {refused}, which is not public; launch/prepare.py reads it with --private-addresses",
            ) from error
        cause = error.__cause__ or error if isinstance(error, FileNotFoundError) else error
        text = redacted(f"{type(cause).__name__}: {cause}")
        raise MediaError(Reason.UNREACHABLE, f"{name}: {text}, in {ATTEMPTS} attempts") from error


def _may_pass(error: BaseException) -> bool:
    exhausted = isinstance(error, OSError) and error.errno in _EXHAUSTED
    return not (isinstance(error, MediaError) or exhausted or _is_absent(error) or private_address(error))


def _is_absent(error: BaseException) -> bool:
    """fsspec's HTTP raises FileNotFoundError for every failure and keeps the true one as its cause."""
    if not isinstance(error, FileNotFoundError):
        return False
    cause = error.__cause__ or error
    return isinstance(cause, FileNotFoundError) or getattr(cause, "status", 0) in (404, 410)
