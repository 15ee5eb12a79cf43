"""Prepare batches before a step needs them."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch

from .batches import Batch

DEPTH = 2  # computing the order of the next epoch takes longer than a step of a small model


class Prefetcher:
    """Fetches and assembles the next batches in a thread while earlier ones are trained on. Order and content stay.

    An exception is raised when the batch that caused it is due. For a GPU, batches are put into pinned memory, from
    which they are copied without blocking the host.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self.batches = batches
        self.pinned = device.type == "cuda"
        self.waited = 0.0  # seconds that training has waited for batches
        self.busy = 0.0  # CPU seconds of the thread
        self._reported = 0.0
        self.thread = ThreadPoolExecutor(1, "reader")
        if device.type == "cpu":  # the step needs its cores
            threads = torch.get_num_threads()
            self.thread.submit(_use_one_thread).result()
            torch.set_num_threads(threads)  # for later threads; running ones keep their own number
        self.coming: deque[Future[Batch | None]] = deque(self.thread.submit(self._fetch) for _ in range(DEPTH))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        begin = time.perf_counter()
        batch = self.coming.popleft().result()
        self.waited += time.perf_counter() - begin
        self.coming.append(self.thread.submit(self._fetch))
        if batch is None:
            raise StopIteration
        return batch

    def waited_since(self) -> float:
        """Seconds of waiting since the previous call."""
        since, self._reported = self.waited - self._reported, self.waited
        return since

    def _fetch(self) -> Batch | None:
        begin = time.thread_time()
        batch = next(self.batches, None)
        if batch is not None and self.pinned:
            batch = batch.pinned()
        self.busy += time.thread_time() - begin
        return batch


def _use_one_thread() -> None:
    """Compute without helper threads: two teams of threads on the same cores would wait for each other."""
    torch.set_num_threads(1)
    torch.get_num_threads()  # otherwise the first operation would reset the number to the default
