"""The other ranks on this machine: whether their processes are still there."""

import os
import select
from collections.abc import Sequence

from .signed_store import Place


class Neighbours:
    """Sees when a process on this machine ends, however it ends."""

    def __init__(self, rank: int, places: Sequence[Place] = ()) -> None:
        self.descriptors = {
            other: os.pidfd_open(place.pid)
            for other, place in enumerate(places)
            if other != rank and place.processes == places[rank].processes
        }
        self.ended: dict[int, float] = {}  # ranks whose process has ended, and when that was seen

    def look(self, now: float) -> None:
        poll = select.poll()
        for descriptor in self.descriptors.values():
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(0)}
        for rank, descriptor in self.descriptors.items():
            if descriptor in ready:
                self.ended.setdefault(rank, now)

    def ended_before(self, time: float) -> list[int]:
        """The ranks of which it was seen before this time."""
        return [rank for rank, since in list(self.ended.items()) if since < time]
