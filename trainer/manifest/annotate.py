"""Fill missing annotation of a manifest by asking a model that hears and sees, clip by clip (section III-B).

Existing fields stay; the model is asked for missing ones of caption, category, SED and time_relation (for music:
caption, genre, mood, instruments and tempo). Answers are saved next to the new manifest at once, and an interrupted run
continues from them. The new manifest appears when every line has been tried.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...models import strict
from ..core import files
from ..core.credentials import redacted
from ..media.source import MediaError
from .answer_cache import AnswerCache, CachedAnswer
from .endpoint import FIELDS, PROMPT, AnswerRefused, ClipTooLong, Endpoint, EndpointClient, EndpointDown
from .manifest import ManifestEntry, parse_entry, raw_lines, read_entries

MAX_FAILURES = 10  # clips in a row without an answer: the endpoint is down


@dataclass
class AnnotateSummary:
    """The result of a run: fields that were filled, and those that were not, with the reason."""

    lines: int = 0
    complete: int = 0  # lines that lacked nothing
    filled: Counter[str] = field(default_factory=Counter)  # by field
    cached: int = 0  # lines whose answer was saved before
    unfilled: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        filled = ", ".join(f"{count} {name}" for name, count in sorted(self.filled.items())) or "nothing"
        reasons = Counter(row["reason"].split(":")[0][:60] for row in self.unfilled)
        missing = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(5))
        return (
            f"{self.lines} lines, {self.complete} complete already, {self.cached} answered before; filled {filled}; "
            f"not filled: {len(self.unfilled)}{f' ({missing})' if missing else ''}"
        )


@dataclass(frozen=True)
class _Question:
    index: int
    entry: ManifestEntry
    raw: dict[str, Any]
    fields: list[str]
    key: str


def annotate_manifest(
    manifest: Path, out: Path, endpoint: Endpoint, concurrency: int, again: bool, allow_private: bool = False
) -> AnnotateSummary:
    """Write `out`, and `out`.unfilled.jsonl if some fields could not be filled. `out`.answers keeps the answers.
    `again` repeats questions whose answers were refused in an earlier run. `allow_private`: as of `read_entries`.

    Raises:
        ValueError: `out` exists, the manifest is wrong, the endpoint refuses the key or the model, or has given no
            answer MAX_FAILURES times in a row; what was answered is kept.
        OSError: the disk is full, or another process holds the answers.
    """
    if out.exists():
        raise ValueError(f"{out} exists and is not overwritten; choose another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    entries = read_entries(manifest, allow_private)
    lines = raw_lines(manifest, entries, out.parent)
    summary = AnnotateSummary(lines=len(lines))
    jobs = [
        job for job in (_question(i, *pair, endpoint) for i, pair in enumerate(zip(entries, lines, strict=True))) if job
    ]
    summary.complete = len(lines) - len(jobs)
    with closing(AnswerCache(out.with_name(out.name + ".answers"))) as answers:
        asker = EndpointClient(endpoint)
        for job, answer in _ask_all(jobs, answers, asker, concurrency, again, summary):
            lines[job.index] = _fill_line(job, answer, endpoint.model, summary)
    if summary.unfilled:
        rows = sorted(summary.unfilled, key=lambda row: row["line"])
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        files.write_text(out.with_name(out.name + ".unfilled.jsonl"), text)
    files.write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))  # last: all is done
    return summary


def _question(index: int, entry: ManifestEntry, raw: dict[str, Any], endpoint: Endpoint) -> _Question | None:
    fields = [name for name in FIELDS[entry.domain] if not entry.annotation.get(name)]
    if not fields:
        return None
    known = {key: value for key, value in entry.annotation.items() if key != "extra"}
    asked = [PROMPT, endpoint.model, endpoint.pictures, fields, known, entry.captions, entry.start, entry.end]
    media = [_media_identity(place) for place in (entry.audio, entry.video) if place]
    key = hashlib.sha256(json.dumps([asked, media]).encode()).hexdigest()
    return _Question(index, entry, raw, fields, key)


def _media_identity(place: str) -> list[Any]:
    """Changes when a file does; media behind addresses are assumed not to change."""
    try:
        status = Path(place).stat()
    except OSError:
        return [place]
    return [place, status.st_size, status.st_mtime_ns]


def _ask_all(
    jobs: list[_Question],
    answers: AnswerCache,
    asker: EndpointClient,
    concurrency: int,
    again: bool,
    summary: AnnotateSummary,
) -> Iterator[tuple[_Question, CachedAnswer]]:
    """Yield questions with answers, in any order. Few per thread are in progress, and none starts after a failure."""
    todo = iter(jobs)
    pending: dict[Future[tuple[CachedAnswer, bool]], _Question] = {}
    failed = 0
    with tqdm(total=len(jobs), unit=" clips", disable=None) as bar, ThreadPoolExecutor(concurrency) as pool:
        try:
            while True:
                while len(pending) < 2 * concurrency and (job := next(todo, None)) is not None:
                    kept = answers.get(job.key)
                    if kept is not None and (kept.text or not again):
                        summary.cached += 1
                        bar.update()
                        yield job, kept
                    else:
                        pending[pool.submit(_ask_one, job, answers, asker)] = job
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    answer, down = future.result()
                    failed = failed + 1 if down else 0
                    if failed >= MAX_FAILURES:
                        raise ValueError(
                            f"{asker.endpoint.url} gave no answer to {failed} clips in a row, the last time: "
                            f"{answer.reason}; earlier answers are kept, and the same command continues from there"
                        )
                    bar.update()
                    yield pending.pop(future), answer
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _ask_one(job: _Question, answers: AnswerCache, asker: EndpointClient) -> tuple[CachedAnswer, bool]:
    """The answer to one clip, and whether the endpoint was down, which is not saved."""

    def check_answer(answer: dict[str, Any]) -> None:
        given = {key: value for key, value in answer.items() if value is not None}
        parse_entry("the answer", Path("."), job.entry.line, {**job.raw, **given})

    try:
        answer = CachedAnswer(json.dumps(asker.ask(job.entry, job.fields, check_answer)))
    except EndpointDown as error:
        return CachedAnswer("", redacted(f"no answer: {error}")), True
    except MediaError as error:
        return CachedAnswer("", f"{error.reason}: {error}"), False
    except ClipTooLong as error:
        return CachedAnswer("", str(error)), False
    except AnswerRefused as error:
        answer = CachedAnswer("", redacted(str(error)))
    answers.put(job.key, answer)
    return answer, False


def _fill_line(job: _Question, answer: CachedAnswer, model: str, summary: AnnotateSummary) -> dict[str, Any]:
    """The line with the answered fields; unanswered ones go into the summary."""
    values = strict.parse_json(answer.text) if answer.text else dict.fromkeys(job.fields)
    given = {name: value for name, value in values.items() if value not in (None, {}, [], "")}
    summary.filled.update(given.keys())
    if missing := [name for name in job.fields if name not in given]:
        reason = answer.reason or "the model cannot tell"
        summary.unfilled.append({"line": job.entry.line, "audio": job.entry.name, "fields": missing, "reason": reason})
    if not given:
        return job.raw
    return {**job.raw, **given, "annotated": {"by": model, "fields": list(given)}}
