"""Watches a rank from outside, since a native call may keep Python's lock forever: then no thread of the rank runs.

The rank writes its phase, that phase's limit and the time into shared memory: when it enters a phase, and in between
from the watchdog's thread. The monitor, a separate process, compares the time with the limit. No lock is shared, so it
may read a sign of life that is half written; a checksum tells it. If the rank is silent for longer, it gathers the
rank's stacks (faulthandler's signal handler needs no lock), kills the rank and names it. A rank that is stopped is
killed too if there are others, which have left by then; one alone may be continued.

Each rank has its own monitor, not each node: it inherits the rank's memory, so nothing has to be found or agreed on
between processes, and it ends with its rank. It imports no torch: it takes 0.1 s to start and about 15 MB.
"""

import faulthandler
import json
import math
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from zlib import crc32

from .rank_location import locate

STACKS = signal.SIGRTMAX - 2  # the signal at which a rank writes its stacks
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # sent to all of a job
GRACE = 2.0  # seconds beyond a limit in which the rank and the others speak for themselves
POLL = 0.25
STALL = 5.0  # seconds without a poll: the monitor itself was stopped
STATE = struct.Struct("<dd128p")  # time of the last sign of life, limit of the phase, phase and step
CHECKSUM = struct.Struct("<I")  # of the state before it


@dataclass(frozen=True)
class Watched:
    """A rank: the argument of its monitor."""

    rank: int
    ranks: int
    pid: int
    main_thread: int
    state: int  # files in memory
    stacks: int


class Monitor:
    """The rank's side. Create it in the main thread."""

    def __init__(self, rank: int, ranks: int) -> None:
        files = [os.memfd_create(name) for name in ("state", "stacks")]
        size = STATE.size + CHECKSUM.size
        os.truncate(files[0], size)
        self.stacks, self.state = files[1], mmap.mmap(files[0], size)
        faulthandler.register(STACKS, self.stacks)
        watched = Watched(rank, ranks, os.getpid(), threading.get_ident(), *files)
        command = [sys.executable, "-P", "-m", __name__, json.dumps(asdict(watched))]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=files)
        os.close(files[0])

    def report(self, status: str, limit: float) -> None:
        """A sign of life."""
        state = STATE.pack(time.monotonic(), limit, status.encode())
        self.state[:] = state + CHECKSUM.pack(crc32(state))

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        faulthandler.unregister(STACKS)
        os.close(self.stacks)


def watch(watched: Watched) -> None:
    """Returns when the rank has ended, by itself or by this process."""
    state = mmap.mmap(watched.state, STATE.size + CHECKSUM.size, prot=mmap.PROT_READ)
    since = last = time.monotonic()
    said = since, math.inf, b""  # the last that was whole
    while os.getppid() == watched.pid:
        time.sleep(POLL)
        now = time.monotonic()
        if now - last > STALL:
            since = now
        last = now
        said = alive, limit, status = last_report(state[:]) or said
        silent = now - max(alive, since)
        if silent <= limit + GRACE:
            continue
        stopped = _is_stopped(watched.pid)
        if stopped and watched.ranks == 1:
            since = now
            continue
        stacks = "" if stopped else _stacks(watched)
        line, _ = locate(stacks, watched.main_thread)
        if os.getppid() != watched.pid:  # it has left meanwhile
            return
        with suppress(ProcessLookupError):
            os.kill(watched.pid, signal.SIGKILL)
        where = f"{status.decode()}{line and f' ({line})'}"
        reason = "it is stopped" if stopped else "a native call keeps Python's lock"
        print(
            f"{stacks}\nerror: rank {watched.rank} is stuck in {where}: no sign of life for {silent:.0f} s, {reason}; "
            f"killed by its monitor; start again with --resume",
            file=sys.stderr,
            flush=True,
        )
        return


def last_report(memory: bytes) -> tuple[float, float, bytes] | None:
    """The last sign of life, the limit of its phase in seconds, and the phase and step. None if it is half written."""
    state, checksum = memory[: STATE.size], memory[STATE.size :]
    return STATE.unpack(state) if CHECKSUM.pack(crc32(state)) == checksum else None


def _is_stopped(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False


def _stacks(watched: Watched) -> str:
    """The stacks of all its threads, or what it has written of them within two seconds."""
    with suppress(ProcessLookupError):
        os.kill(watched.pid, STACKS)
    size = -1
    for _ in range(20):
        time.sleep(0.1)
        before, size = size, os.fstat(watched.stacks).st_size
        if size == before > 0:
            break
    return os.pread(watched.stacks, size, 0).decode("ascii", "replace")


if __name__ == "__main__":
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    watch(Watched(**json.loads(sys.argv[1])))
