"""Stopping on a signal: all ranks agree at the end of a step, save, and leave with their own exit code.

A batch system sends SIGUSR2 some minutes before its limit (NCCL has swallowed SIGUSR1), a preempted machine sends
SIGTERM. The handler only sets a flag, so nothing is interrupted in the middle.
"""

import signal
from types import FrameType
from typing import Any, Self

import torch
import torch.distributed as dist

from ..core.cli import ExitCode

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class StoppedError(Exception):
    """The work was asked to stop, has stopped, and can be resumed. All ranks raise it."""

    exit_code = ExitCode.STOPPED
    everywhere = True


class StopSignal:
    """A context manager in which these signals are a request to stop. Enter it in the main thread, once there is a
    process group.

    Slurm may send SIGUSR2 to all processes of a job, and the run's child processes (loaders, compilers) have no
    handler: they would die before the step is saved. So the main thread blocks it, which its children inherit.
    """

    def __init__(self) -> None:
        self.received = False
        self.before: dict[signal.Signals, Any] = {}
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        # A group of its own, so that its operation is never paired with another one of a rank in another place.
        self.group = dist.new_group(backend="gloo") if ranks > 1 else None

    def __enter__(self) -> Self:
        self.before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        return self

    def __exit__(self, *_: object) -> None:
        while signal.SIGUSR2 in signal.sigpending():  # otherwise it would arrive where there is no handler any more
            signal.sigwait({signal.SIGUSR2})
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    @property
    def asked(self) -> bool:
        """Whether this process was asked: a thread received the signal, or it is pending."""
        return self.received or signal.SIGUSR2 in signal.sigpending()

    def agree(self, busy: bool = False) -> tuple[bool, bool]:
        """Whether any rank was asked to stop, and whether any is busy. All ranks call this."""
        if self.group is None:
            return self.asked, busy
        flags = torch.tensor([self.asked, busy], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX, self.group)
        return bool(flags[0]), bool(flags[1])
