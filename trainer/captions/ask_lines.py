"""Ask a model about the lines of a block, some at the same time, in a maker.

Its decoder decodes the lines, so a damaged file costs at most the decoder. Answers are saved at once, in one file for
all makers: after an interruption nothing is asked twice.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from ...models import strict
from ..core.credentials import redacted
from ..manifest.answer_cache import AnswerCache, CachedAnswer
from ..manifest.asking import FailureRow
from ..manifest.endpoint import AnswerRefused, Endpoint, EndpointClient, EndpointDown
from ..manifest.manifest import ManifestEntry
from ..manifest.prices import LETTERS, PICTURE_TOKENS, Usage
from ..prepare.decode import Rejection
from ..prepare.decoders import LineOutput, LineRestart, decode_lines
from ..stages.stage import LineResults, StageResult, StageTask
from ..workers.effort import Effort
from ..workers.pool import Pool
from .hear import Hear, MediaParts

REFUSED, NO_ANSWER = "answer refused", "no answer"


@dataclass(frozen=True)
class Question:
    """One question about a line; `name` is unique among those of the line."""

    name: str
    system: str  # what the model is to do
    asked: str  # follows the length of the sound
    answer_tokens: int  # about
    schema: Callable[[float], dict[str, Any]]  # of an answer about so many seconds
    check: Callable[[dict[str, Any], float], None]  # the same; raises ValueError


@dataclass(frozen=True)
class LineAnswer:
    """The accepted answer; empty if there is none, and why."""

    value: dict[str, Any]
    reason: str = ""
    detail: str = ""


class Interview(Protocol):
    """What a stage asks about a line, and what it makes of the answers."""

    @property
    def endpoint(self) -> Endpoint: ...

    def questions(self, entry: ManifestEntry) -> list[Question]: ...

    def result(self, entry: ManifestEntry, answers: Mapping[str, LineAnswer]) -> StageResult: ...


@dataclass(frozen=True)
class Asking:
    """An interview of all lines, with `concurrency` requests at the same time. `again` repeats questions whose answers
    were refused in an earlier run."""

    interview: Interview
    concurrency: int = 8
    again: bool = False

    @property
    def hear(self) -> Hear:
        endpoint = self.interview.endpoint
        return Hear(endpoint.pictures, endpoint.longest)

    @property
    def longest(self) -> float:
        return self.interview.endpoint.longest

    def asked(self, entry: ManifestEntry) -> Usage:
        """What is asked about a line at most."""
        questions = self.interview.questions(entry)
        pictures = PICTURE_TOKENS * self.interview.endpoint.pictures if entry.video else 0
        letters = sum(len(question.system) + len(question.asked) for question in questions)
        written = sum(question.answer_tokens for question in questions)
        return Usage(len(questions), letters / LETTERS + len(questions) * pictures, written)

    def makers(self, workers: int) -> int:
        """How many of the workers may ask: each makes at least one request at a time."""
        return min(workers, self.concurrency)

    def asker(self, answers: Path, workers: int) -> "Callable[[], LineAsker]":
        """What each of the makers calls once."""
        makers = self.makers(workers)
        return partial(LineAsker, self, answers, self.concurrency // makers, self.interview.endpoint.rate / makers)


@dataclass
class _AskedLine:
    """A line that is being asked about."""

    entry: ManifestEntry
    questions: list[Question]
    answers: dict[str, LineAnswer] = field(default_factory=dict)
    futures: dict[str, Future[LineAnswer]] = field(default_factory=dict)
    spent: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    effort: Effort = field(default_factory=Effort)
    result: StageResult | None = None  # of a line that cannot be heard

    @property
    def open(self) -> list[Question]:
        return [question for question in self.questions if question.name not in self.answers]


class LineAsker:
    """Asks with `threads` requests at the same time, `rate` per minute at most."""

    def __init__(self, asking: Asking, answers: Path, threads: int, rate: float) -> None:
        self._interview, self._again, self._threads = asking.interview, asking.again, threads
        self._client = EndpointClient(replace(asking.interview.endpoint, rate=rate))
        self._saved = AnswerCache(answers)
        self._pool = ThreadPoolExecutor(threads)
        self._failures, self._lock = FailureRow(asking.interview.endpoint.url, "questions"), Lock()

    def __call__(self, entries: Iterable[ManifestEntry], decoders: Pool[StageTask]) -> LineResults:
        """The result of each line by its number, with what decoding it took.

        Raises ValueError if the endpoint refuses the key or the model, or gave no answer MAX_FAILURES times in a row.
        """
        lines = {entry.line: _AskedLine(entry, self._interview.questions(entry)) for entry in entries}
        for line in lines.values():
            self._recall(line)
        pending: set[Future[LineAnswer]] = set()

        def has_room() -> bool:
            while len(pending) >= 2 * self._threads:
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                pending.difference_update(finished)
                for future in finished:
                    future.result()  # raises what would stop the run
            return True

        waiting = [StageTask(line.entry) for line in lines.values() if line.open]
        for event in decode_lines(waiting, decoders, has_room):
            line = lines[event.entry.line]
            if isinstance(event, LineOutput):
                value, line.effort = event.value
                if isinstance(value, StageResult):
                    line.result = value
                elif value is not None and not line.futures:  # a decoder that is lost decodes again
                    line.seconds = value.seconds
                    line.futures = {q.name: self._pool.submit(self._ask, line, q, value) for q in line.open}
                    pending.update(line.futures.values())
            elif not isinstance(event, LineRestart) and event.fault:
                line.result = StageResult(left_out=[Rejection(line.entry.line, line.entry.name, *event.fault)])
        return {number: (self._finish(line), line.effort) for number, line in lines.items()}

    def _recall(self, line: _AskedLine) -> None:
        """Take the answers that are saved."""
        for question in line.questions:
            saved = self._saved.get(self._key(line.entry, question))
            if saved is not None and saved.text:
                value = strict.parse_json(saved.text)
                line.seconds = value["seconds"]
                line.answers[question.name] = LineAnswer(value["answer"])
            elif saved is not None and not self._again:
                line.answers[question.name] = LineAnswer({}, REFUSED, saved.reason)

    def _finish(self, line: _AskedLine) -> StageResult:
        recalled = len(line.answers)
        line.answers |= {name: future.result() for name, future in line.futures.items()}
        if line.result:
            return line.result
        answers = {question.name: line.answers[question.name] for question in line.questions}  # whichever came first
        entry = line.entry
        seconds = line.seconds or (entry.end or entry.start) - entry.start
        result = self._interview.result(entry, answers)
        before = {"answered before": float(recalled)} if recalled else {}
        amounts = result.amounts | line.spent.amounts() | before
        values = {"seconds": seconds} if seconds else {}
        return replace(result, seconds=seconds, kept_seconds=seconds, values=values, amounts=amounts)

    def _key(self, entry: ManifestEntry, question: Question) -> str:
        endpoint = self._interview.endpoint
        asked = [endpoint.model, endpoint.pictures, question.system, question.asked, entry.start, entry.end]
        media = [_media_identity(place) for place in (entry.audio, entry.video) if place]
        return hashlib.sha256(json.dumps([asked, media]).encode()).hexdigest()

    def _ask(self, line: _AskedLine, question: Question, heard: MediaParts) -> LineAnswer:
        """In a thread."""
        text = f"A recording of {heard.seconds:.2f} s. {question.asked}"
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": question.system},
            {"role": "user", "content": [{"type": "text", "text": text}, *heard.parts]},
        ]
        key, spent = self._key(line.entry, question), Usage()
        try:
            schema = question.schema(heard.seconds)
            answer = self._client.ask_json(messages, schema, lambda a: question.check(a, heard.seconds), spent)
            found = LineAnswer(answer)
            self._saved.put(key, CachedAnswer(json.dumps({"answer": answer, "seconds": heard.seconds})))
        except EndpointDown as error:
            found = LineAnswer({}, NO_ANSWER, redacted(str(error)))
        except AnswerRefused as error:
            found = LineAnswer({}, REFUSED, redacted(str(error)))
            self._saved.put(key, CachedAnswer("", found.detail))
        with self._lock:
            line.spent.add(spent)
            self._failures.add(found.reason == NO_ANSWER, found.detail)
        return found


def _media_identity(place: str) -> list[Any]:
    """Changes when a file does; media behind addresses are assumed not to change."""
    try:
        status = Path(place).stat()
    except OSError:
        return [place]
    return [place, status.st_size, status.st_mtime_ns]
