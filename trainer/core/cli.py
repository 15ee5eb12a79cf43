"""Shared by the command lines in launch/. Imports nothing slow, so that a refusal comes at once."""

import argparse
import contextlib
import errno
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

from .credentials import redacted


class ExitCode(IntEnum):
    """The end of a launch. A batch system requeues a job for STOPPED and HUNG only."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    STOPPED = 75  # was asked to stop, and saved
    BAD_NODE = 76
    CORRUPT = 77  # checkpoints or data are damaged beyond recovery
    HUNG = 78  # a rank is dead or stuck, or a GPU or the network failed
    DIVERGED = 79
    FAULTY = 81  # a rank has other weights than the others, or other results the second time: its device is faulty


INTERRUPTED = 128 + signal.SIGINT  # as shells report it
T = TypeVar("T")
HUB = "a name on the hub: owner/name or owner/name@revision"
READER_GONE = (errno.EPIPE, errno.EIO)  # a pipe that nobody reads any more, a terminal that was closed


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a script's docstring, with its line breaks."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_config(
    to: argparse.ArgumentParser, what: str = "the run's JSON file, or the name of one in configs/, as tiny"
) -> None:
    """Add --config and --set."""
    to.add_argument("--config", required=True, type=Path, help=what)
    add_overrides(to)


def add_overrides(to: argparse.ArgumentParser, name: str = "--set", of: str = "the configuration") -> None:
    to.add_argument(name, action="append", default=[], metavar="KEY=VALUE", help=f"override a value of {of}")


def set_options(overrides: Iterable[str]) -> list[str]:
    """The arguments that pass these KEY=VALUE on."""
    return [word for override in overrides for word in ("--set", override)]


def positive(text: str) -> int:
    """Parse an argument that must be a whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def add_weights(to: argparse.ArgumentParser) -> None:
    """Add --weights."""
    to.add_argument("--weights", required=True, help=f"folder made by launch/convert.py, or {HUB}")


def add_teacher(to: argparse.ArgumentParser) -> None:
    """Add --teacher."""
    to.add_argument("--teacher", required=True, help=f"weights folder made by launch/convert.py, or {HUB}")


def add_adapters(to: argparse.ArgumentParser) -> None:
    """Add --adapter, a list of (folder or name on the hub, factor)."""
    how = f"an adapter made by launch/convert.py, or {HUB}; added FACTOR (default: 1) times; may be given several times"
    to.add_argument(
        "--adapter", action="append", default=[], type=_adapter_and_factor, metavar="ADAPTER[:FACTOR]", help=how
    )


def _adapter_and_factor(text: str) -> tuple[str, float]:
    adapter, colon, number = text.rpartition(":")
    try:
        factor = float(number) if colon else 1.0
    except ValueError:
        factor = math.nan
    if not math.isfinite(factor):
        raise argparse.ArgumentTypeError(f"{text!r}: {number!r} after the last colon is no finite number")
    return adapter if colon else text, factor


def add_local_rank(to: argparse.ArgumentParser) -> None:
    """Accept what DeepSpeed's launcher passes to every rank."""
    to.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)


def add_self_test(to: argparse.ArgumentParser) -> None:
    """Add --self-test and --no-self-test; by default None."""
    to.add_argument(
        "--self-test",
        action=argparse.BooleanOptionalAction,
        help="compare DeepSpeed's gradients with torch's before training (default: on several ranks or a GPU)",
    )


def add_output(to: argparse.ArgumentParser) -> None:
    """Add --output, --resume and --from."""
    to.add_argument("--output", type=Path, help="folder of the run (default: runs/<name of the config>)")
    to.add_argument("--resume", action="store_true", help="resume the run in that folder, or start it")
    to.add_argument(
        "--from",
        dest="from_step",
        type=positive,
        metavar="STEP",
        help="with --resume: go back to the checkpoint of this step; later ones are moved to RUN/rolled_back",
    )


def output_folder(arguments: argparse.Namespace) -> Path:
    """The folder of a run. Compiled code is cached there too."""
    folder: Path = arguments.output or Path("runs") / arguments.config.stem
    set_compile_cache(folder)
    return folder


def set_compile_cache(folder: Path) -> None:
    """Give each run its own cache: a process killed while it compiles leaves an empty library, which breaks others.

    Raises ValueError if the cache belongs to another user, because the code in it would be executed.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    compiled = folder.absolute() / "compiled"
    if compiled.exists() and compiled.stat().st_uid != os.getuid():
        raise ValueError(
            f"{compiled} belongs to user {compiled.stat().st_uid}, and its code would be executed: remove it, or set "
            f"TORCHINDUCTOR_CACHE_DIR to a folder of your own"
        )
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(compiled)


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code of a process that this error ends. An exception class may name it as `exit_code`."""
    if isinstance(error, FloatingPointError):
        return ExitCode.DIVERGED
    torch = sys.modules.get("torch")  # if it is not loaded, the error is not torch's
    if torch and isinstance(error, (torch.AcceleratorError, torch.distributed.DistBackendError)):
        return ExitCode.HUNG  # a GPU or NCCL failed; running out of memory is another class, and would happen again
    return ExitCode(getattr(error, "exit_code", ExitCode.FAILED))


def error_message(error: BaseException) -> str:
    """An error of the system about a file begins with its name, without the error number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return str(error)


def sentence(error: BaseException) -> str:
    """What a command prints of an error: no credential, and nothing that a terminal would obey, as in a key that a file
    brought."""
    text = redacted(error_message(error))
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class _LosableOutput:
    """Standard output or error whose reader may go away: a command continues, and what it prints is lost."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return self._try(lambda: self.stream.write(text), len(text))

    def flush(self) -> None:
        self._try(self.stream.flush, None)

    def _try(self, act: Callable[[], T], otherwise: T) -> T:
        try:
            return act()
        except OSError as error:
            if error.errno not in READER_GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())  # for child processes and libraries too
            os.close(nowhere)
            return otherwise


@contextlib.contextmanager
def _losable_outputs() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _LosableOutput(stream)) for stream in before)
    try:
        yield
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        sys.stdout, sys.stderr = before


def run(act: Callable[[], None]) -> int:
    """Run a command and return its exit code. An error that a user can fix is printed as a sentence, any other one with
    its traceback; neither shows a credential. A reader of its output that goes away does not end it."""
    with _losable_outputs():
        return _run(act)


def _run(act: Callable[[], None]) -> int:
    try:
        act()
    except (ValueError, OSError, FloatingPointError) as error:
        _print(error, "error: ")
        return exit_code_of(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if exit_code_of(error) is ExitCode.STOPPED:
            _print(error)
        else:
            print(redacted(traceback.format_exc()), end="", file=sys.stderr)
        return exit_code_of(error)
    return ExitCode.DONE


def _print(error: Exception, before: str = "") -> None:
    """Print an error. One that all ranks raise (`everywhere`) is printed by rank 0 only."""
    if not getattr(error, "everywhere", False) or os.environ.get("RANK", "0") == "0":
        print(f"{before}{sentence(error)}", file=sys.stderr)
