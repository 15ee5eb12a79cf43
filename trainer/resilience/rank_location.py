"""Where in this project a process stands, for the sentence that it leaves with."""

import faulthandler
import os
import re
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("launch", "trainer", "models", "kernels")
COLLECTIVES = "distributed_c10d.py"  # torch's file of collective operations
THREAD, FRAME = re.compile(r"(?:Current thread|Thread) 0x([0-9a-f]+)"), re.compile(r'  File "(.*)", line (\d+) in ')


def whereabouts() -> tuple[str, bool]:
    """The innermost line of this project that the main thread is in, and whether some thread waits for other ranks.

    For a process that stands still: Python 3.11 breaks off (SIGSEGV) where stacks are read while a thread of C++, as
    gloo's, attaches itself, whose state is in the list before it is filled (as in python/cpython#116008).
    """
    line, waits, main = "", False, False
    for text in _stacks().splitlines():
        if thread := THREAD.match(text):
            main = int(thread[1], 16) == threading.main_thread().ident
        elif frame := FRAME.match(text):
            waits = waits or frame[1].endswith(COLLECTIVES)
            file = Path(frame[1])
            if main and not line and file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in FOLDERS:
                line = f"{file.relative_to(ROOT)}:{frame[2]}"
    return line, waits


def _stacks() -> str:
    """Of all threads, the innermost frame first."""
    with os.fdopen(os.memfd_create("stacks"), "w+b") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode("ascii", "replace")
