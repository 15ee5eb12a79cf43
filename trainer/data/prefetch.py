"""Batches that are ready before a step wants them."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch

from .batches import Batch

DEPTH = 2  # at the end of an epoch the next one's order is made, which takes longer than a step of a small model


class Prefetcher:
    """The same batches in the same order, fetched and assembled by a thread while those before them are trained on.

    What a batch raises comes when it is its turn. For a GPU batches lie in pinned memory: only from there are they
    copied without the host waiting for the device.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self.batches = batches
        self.pinned = device.type == "cuda"
        self.waited = 0.0  # seconds that training waited for batches
        self.busy = 0.0  # processor seconds of the thread
        self._reported = 0.0
        self.thread = ThreadPoolExecutor(1, "reader")
        if device.type == "cpu":  # whose cores the step is computed on
            threads = torch.get_num_threads()
            self.thread.submit(_use_one_thread).result()
            torch.set_num_threads(threads)  # for threads that are yet to come; those that run have numbers of their own
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
        """Seconds of waiting since the last call."""
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
    """Operations of this thread are its own work: two teams of threads on the same cores would wait for each other."""
    torch.set_num_threads(1)
    torch.get_num_threads()  # else the first operation would take the number that all threads begin with
