"""The line of this project that a rank's main thread is in, for the last message of a rank that hangs."""

import faulthandler
import os
import re
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("launch", "trainer", "models", "kernels")
COLLECTIVES = "distributed_c10d.py"  # torch's file of collective operations
THREAD, FRAME = re.compile(r"(?:Current thread|Thread) 0x([0-9a-f]+)"), re.compile(r'  File "(.*)", line (\d+) in ')


def rank_location() -> tuple[str, bool]:
    """The innermost line of this project in the main thread's stack, and whether a thread waits for other ranks.

    Call it only when the process makes no progress: Python 3.11 crashes (SIGSEGV) if stacks are read while a C++
    thread, such as gloo's, attaches itself (as in python/cpython#116008).
    """
    return locate(_stacks(), threading.main_thread().ident)


def locate(stacks: str, main_thread: int | None) -> tuple[str, bool]:
    """`rank_location` of these stacks, as faulthandler writes them."""
    line, waits, main = "", False, False
    for text in stacks.splitlines():
        if thread := THREAD.match(text):
            main = int(thread[1], 16) == main_thread
        elif frame := FRAME.match(text):
            waits = waits or frame[1].endswith(COLLECTIVES)
            file = Path(frame[1])
            if main and not line and file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in FOLDERS:
                line = f"{file.relative_to(ROOT)}:{frame[2]}"
    return line, waits


def _stacks() -> str:
    """The stacks of all threads, innermost frame first."""
    with os.fdopen(os.memfd_create("stacks"), "w+b") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode("ascii", "replace")
