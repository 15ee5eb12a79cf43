"""What the command lines in launch/ share; imports nothing that takes time."""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from enum import IntEnum
from pathlib import Path

from .credentials import redacted


class ExitCode(IntEnum):
    """What a launch ends with; a batch system puts it back into its queue for STOPPED and HUNG only."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    STOPPED = 75  # asked to stop, saved
    BAD_NODE = 76
    CORRUPT = 77  # a checkpoint or data are damaged beyond recovery
    HUNG = 78  # a rank is dead or stuck, a GPU or the network between GPUs failed
    DIVERGED = 79


INTERRUPTED = 128 + signal.SIGINT  # as a shell says it


def parser(doc: str | None) -> argparse.ArgumentParser:
    """One whose help is a script's docstring as it stands."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_config(to: argparse.ArgumentParser, what: str = "the run's JSON file, see configs/") -> None:
    """--config and --set."""
    to.add_argument("--config", required=True, type=Path, help=what)
    to.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a config value")


def set_options(overrides: Iterable[str]) -> list[str]:
    """The words of a command line that passes these KEY=VALUE on."""
    return [word for override in overrides for word in ("--set", override)]


def positive(text: str) -> int:
    """A whole number from 1 on, as an argument."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def add_launched(to: argparse.ArgumentParser) -> None:
    """What DeepSpeed's launcher passes to every rank."""
    to.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)


def add_output(to: argparse.ArgumentParser) -> None:
    """--output and --resume of a run."""
    to.add_argument("--output", type=Path, help="folder of the run (default: runs/<name of the config>)")
    to.add_argument("--resume", action="store_true", help="go on with the run in that folder, or start it")


def output(arguments: argparse.Namespace) -> Path:
    """The folder of a run, in which compiled code goes too."""
    folder: Path = arguments.output or Path("runs") / arguments.config.stem
    cache_compiled(folder)
    return folder


def cache_compiled(folder: Path) -> None:
    """A process killed while compiling leaves an empty library behind that would break other runs: each has its own.

    Raises ValueError where it belongs to another user: what lies there is carried out.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    compiled = folder.absolute() / "compiled"
    if compiled.exists() and compiled.stat().st_uid != os.getuid():
        raise ValueError(
            f"{compiled} belongs to user {compiled.stat().st_uid}, and the code in it would be run: remove it, or set "
            f"TORCHINDUCTOR_CACHE_DIR to a folder of your own"
        )
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(compiled)


def code_of(error: BaseException) -> ExitCode:
    """With which code a process ends that this error ends; an exception class says so by its `exit_code`."""
    if isinstance(error, FloatingPointError):
        return ExitCode.DIVERGED
    torch = sys.modules.get("torch")  # else the error is none of torch's
    if torch and isinstance(error, (torch.AcceleratorError, torch.distributed.DistBackendError)):
        return ExitCode.HUNG  # a GPU or NCCL; too little memory is another class, and is there the next time too
    return ExitCode(getattr(error, "exit_code", ExitCode.FAILED))


def message(error: BaseException) -> str:
    """What the system says of a file begins with the file's name, without the number of the error."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return str(error)


def exit_code(act: Callable[[], None]) -> int:
    """Carry a command out: 0, or another `ExitCode` after a sentence for what a user can mend, or after a traceback for
    what only we can. Neither shows a credential."""
    try:
        act()
    except (ValueError, OSError, FloatingPointError) as error:
        _say(error, "error: ")
        return code_of(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if code_of(error) is ExitCode.STOPPED:
            _say(error)
        else:
            print(redacted(traceback.format_exc()), end="", file=sys.stderr)
        return code_of(error)
    return ExitCode.DONE


def _say(error: Exception, before: str = "") -> None:
    """What all ranks raise, as an error's `everywhere` says, is said by one."""
    if not getattr(error, "everywhere", False) or os.environ.get("RANK", "0") == "0":
        print(f"{before}{redacted(message(error))}", file=sys.stderr)
