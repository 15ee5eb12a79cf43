"""Many questions to an endpoint, some at the same time; those that were answered before are not asked again."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

from tqdm import tqdm

from .answer_cache import AnswerCache, CachedAnswer

MAX_FAILURES = 10  # questions in a row without an answer: the endpoint is down


class FailureRow:
    """Counts questions in a row without an answer. `unit`: what is asked about."""

    def __init__(self, url: str, unit: str) -> None:
        self._url, self._unit, self._count = url, unit, 0

    def add(self, down: bool, reason: str) -> None:
        """Raises ValueError at MAX_FAILURES of them."""
        self._count = self._count + 1 if down else 0
        if self._count >= MAX_FAILURES:
            raise ValueError(
                f"{self._url} gave no answer to {self._count} {self._unit} in a row, the last time: {reason}; "
                f"earlier answers are kept, and the same command continues from there"
            )


class Question(Protocol):
    """What is asked; equal keys mean equal answers."""

    @property
    def key(self) -> str: ...


Q = TypeVar("Q", bound=Question)


def ask_all(
    questions: Sequence[Q],
    answers: AnswerCache,
    ask: Callable[[Q], tuple[CachedAnswer, bool]],
    concurrency: int,
    again: bool,
    url: str,
    unit: str = "clips",
) -> Iterator[tuple[Q, CachedAnswer, bool]]:
    """Yield each question with its answer and whether that was saved before, in any order.

    `ask` gives an answer, which it saves where it should be, and whether the endpoint was down. Few questions per
    thread are in progress, and none starts after a failure. `again` repeats those whose answers were refused earlier.

    Raises ValueError when the endpoint gave no answer MAX_FAILURES times in a row.
    """
    todo = iter(questions)
    pending: dict[Future[tuple[CachedAnswer, bool]], Q] = {}
    failures = FailureRow(url, unit)
    with tqdm(total=len(questions), unit=f" {unit}", disable=None) as bar, ThreadPoolExecutor(concurrency) as pool:
        try:
            while True:
                while len(pending) < 2 * concurrency and (question := next(todo, None)) is not None:
                    kept = answers.get(question.key)
                    if kept is not None and (kept.text or not again):
                        bar.update()
                        yield question, kept, True
                    else:
                        pending[pool.submit(ask, question)] = question
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    answer, down = future.result()
                    failures.add(down, answer.reason)
                    bar.update()
                    yield pending.pop(future), answer, False
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
