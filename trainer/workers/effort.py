"""What work takes: seconds of cores and of GPUs. Imports nothing slow."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Effort:
    """Seconds of cores and of GPUs."""

    cores: float = 0.0
    gpus: float = 0.0

    def __add__(self, other: "Effort") -> "Effort":
        return Effort(self.cores + other.cores, self.gpus + other.gpus)

    def __sub__(self, other: "Effort") -> "Effort":
        return Effort(self.cores - other.cores, self.gpus - other.gpus)

    def __mul__(self, factor: float) -> "Effort":
        return Effort(self.cores * factor, self.gpus * factor)

    def __str__(self) -> str:
        gpus = f", {self.gpus / 3600:.2f} GPU hours" if self.gpus else ""
        return f"{self.cores / 3600:.2f} core hours{gpus}"


_gpus = 0.0


@contextmanager
def on_device(device: str) -> Iterator[None]:
    """Count the time inside as that of a GPU, unless the device is the CPU. What runs inside waits for its result."""
    global _gpus
    begin = time.monotonic()
    try:
        yield
    finally:
        if device != "cpu":
            _gpus += time.monotonic() - begin


def spent() -> Effort:
    """What this process has taken so far."""
    return Effort(time.process_time(), _gpus)


class Timed:
    """A generator function whose values come with the effort since it began."""

    def __init__(self, function: Callable[[Any], Iterator[Any]]) -> None:
        self._function = function

    def __call__(self, task: Any) -> Iterator[tuple[Any, Effort]]:
        begin = spent()
        for value in self._function(task):
            yield value, spent() - begin
