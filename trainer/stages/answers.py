"""Decoders of a stage, which stop it where too many addresses in a row give no answer."""

from collections.abc import Callable, Iterator
from typing import Any

from ..core.addresses import ADDRESS
from ..media.source import Reason
from ..prepare.decoders import ProcessDecoders
from ..workers.effort import Timed
from ..workers.pool import TaskEnd, TaskOutput
from ..workers.unanswered import UnansweredRow
from .stage import Judge, StageResult, StageTask

MEDIA_REASONS = {reason.value for reason in Reason}


class AnsweringDecoders(ProcessDecoders[StageTask]):
    """One process that judges lines, and in `answers` what their addresses gave: empty, or why one gave nothing."""

    def __init__(self, judge: Judge, limit: float, unreachable: int) -> None:
        super().__init__(Timed(judge), 1, limit)
        self._row = UnansweredRow(unreachable)
        self.answers: list[str] = []  # of the lines since it was cleared

    def run(
        self, next_task: Callable[[], StageTask | None]
    ) -> Iterator[TaskOutput[StageTask] | TaskEnd[StageTask] | None]:
        """As `Pool.run`. Raises ConnectionError."""
        for message in super().run(next_task):
            if isinstance(message, TaskOutput) and isinstance(message.value, tuple):  # not one that waits
                entry, result = message.task.entry, message.value[0]
                addresses = any(ADDRESS.match(place) for place in (entry.audio, entry.video) if place)
                if addresses and (answer := _answer(result)) is not None:
                    self.answers.append(answer)
                    self._row.add(answer)
            yield message


def _answer(result: Any) -> str | None:
    """Of a line with addresses; None if nobody was asked for them, or not yet."""
    if not isinstance(result, StageResult):
        return None if result is None else ""
    reasons = {row.reason: row.detail for row in result.left_out}
    if Reason.UNREACHABLE.value in reasons:
        return reasons[Reason.UNREACHABLE.value]
    return "" if result.seconds or MEDIA_REASONS & reasons.keys() else None
