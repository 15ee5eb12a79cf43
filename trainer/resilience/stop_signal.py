"""A run that is asked to stop: all ranks agree at the end of a step, save, and leave with a code of their own.

A batch system sends SIGUSR2 some minutes before its limit (SIGUSR1 has been swallowed by NCCL), a machine that is taken
away sends SIGTERM. The handler only sets a flag, so that nothing is interrupted in the middle.
"""

import signal
from types import FrameType
from typing import Any, Self

import torch
import torch.distributed as dist

from ..core.cli import ExitCode

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class StoppedError(Exception):
    """What was asked to stop has done so, and can go on; the message says from where. All ranks raise it."""

    exit_code = ExitCode.STOPPED
    everywhere = True


class Stop:
    """A context manager in which these signals are a request. Enter it in the main thread, once the process group is
    there.

    Slurm may send SIGUSR2 to all processes of a job, and what a run starts (loaders, compilers) has no handler: it
    would die of it before the step is saved. So the main thread blocks it, which what it starts inherits.
    """

    def __init__(self) -> None:
        self.heard = False
        self.before: dict[signal.Signals, Any] = {}
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        # A group of its own: its operation is never paired with another one of a rank that is elsewhere.
        self.group = dist.new_group(backend="gloo") if ranks > 1 else None

    def __enter__(self) -> Self:
        self.before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        return self

    def __exit__(self, *_: object) -> None:
        while signal.SIGUSR2 in signal.sigpending():  # else it would arrive where nobody listens any more
            signal.sigwait({signal.SIGUSR2})
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = True

    @property
    def asked(self) -> bool:
        """Whether this process was: a thread from before took the signal, or it waits for one."""
        return self.heard or signal.SIGUSR2 in signal.sigpending()

    def agreed(self, busy: bool = False) -> tuple[bool, bool]:
        """Whether any rank was asked to stop, and whether any says that it is busy. All ranks call this."""
        if self.group is None:
            return self.asked, busy
        flags = torch.tensor([self.asked, busy], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX, self.group)
        return bool(flags[0]), bool(flags[1])
