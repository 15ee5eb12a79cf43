"""Stopping on a signal: all ranks agree at the end of a step, save, and leave with their own exit code.

A batch system sends SIGUSR2 or SIGUSR1 some minutes before its limit (choose SIGUSR2: NCCL has swallowed SIGUSR1), a
preempted machine sends SIGTERM, a terminal that closes SIGHUP. The handler only sets a flag, so nothing is interrupted
in the middle.
"""

import signal
from types import FrameType
from typing import Any, Self

import torch
import torch.distributed as dist

from ..core.cli import ExitCode

GROUP_SIGNALS = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP}  # may be sent to the child processes as well
SIGNALS = {*GROUP_SIGNALS, signal.SIGTERM}


class StoppedError(Exception):
    """The work was asked to stop, has stopped, and can be resumed. All ranks raise it."""

    exit_code = ExitCode.STOPPED
    everywhere = True


class StopSignal:
    """A context manager in which these signals are a request to stop. Enter it in the main thread, once there is a
    process group.

    Slurm and a terminal may send theirs to all processes of a job, and the run's child processes (loaders, compilers)
    have no handler: they would die before the step is saved. So the main thread blocks these signals, and its children
    inherit that. SIGHUP stays ignored where it was, as by nohup; batch scripts ignore the others until it listens.
    """

    def __init__(self) -> None:
        self.received = False
        self.before: dict[signal.Signals, Any] = {}
        self.blocked: set[signal.Signals] = set()
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        # A separate group, so that its operation is never paired with another one of a rank in another place.
        self.group = dist.new_group(backend="gloo") if ranks > 1 else None

    def __enter__(self) -> Self:
        heard = set(SIGNALS)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            heard.remove(signal.SIGHUP)
        self.before = {number: signal.signal(number, self._receive) for number in heard}
        self.blocked = GROUP_SIGNALS.intersection(heard)
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, self.blocked)
        return self

    def __exit__(self, *_: object) -> None:
        while pending := self._pending():  # otherwise they would arrive where there is no handler any more
            signal.sigwait(pending)
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    def _pending(self) -> set[signal.Signals]:
        return self.blocked.intersection(signal.sigpending())

    @property
    def requested(self) -> bool:
        """Whether this process was asked: a thread received the signal, or it is pending."""
        return self.received or bool(self._pending())

    def agree(self, busy: bool = False) -> tuple[bool, bool]:
        """Whether any rank was asked to stop, and whether any is busy. All ranks call this."""
        if self.group is None:
            return self.requested, busy
        flags = torch.tensor([self.requested, busy], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX, self.group)
        return bool(flags[0]), bool(flags[1])
