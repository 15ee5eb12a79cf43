"""T2A-bench's prompts written by a language model, a hundred for each number of categories (appendix A-C)."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models import strict
from ..core.credentials import redacted
from ..manifest.answer_cache import AnswerCache, CachedAnswer
from ..manifest.endpoint import AnswerRefused, Endpoint, EndpointClient, EndpointDown
from .bench_prompts import MOST, InstructionPrompt, Kind

BATCH = 10  # prompts per request
SPARE = 3  # times as many requests as are needed at least, since some prompts come twice
TOPICS = (
    "animals", "people and their voices", "household and kitchen", "traffic and engines", "weather and water",
    "tools and machines", "alarms and signals", "sport and play", "farm and forest", "office and street",
)  # fmt: skip
SYSTEM = """You write prompts for a benchmark of text-to-audio models. A prompt is one or two natural sentences that ask
for a short recording of everyday sounds. Use sounds that a listener recognises and can tell apart, and that can be
counted where a number is asked for. Answer with one JSON object that has the key "prompts", a list of objects with
"text", the sentences, and "events", the names of the sounds in short; nothing else. All prompts must differ."""
ASKED: dict[Kind, str] = {
    "category": "Each text names exactly {size} different sounds, without any number, order or time; `events` has "
    "them.",
    "count": "Each text names one sound and says that it is heard exactly {size} times; `events` has its name once.",
    "order": "Each text names {size} different sounds and says in which order they follow one another; `events` has "
    "them in this order.",
    "timestamp": "Each text names one sound and says at which second it starts and ends, within {seconds:g} seconds; "
    "`events` has its name once, and `start` and `end` the seconds.",
}


@dataclass(frozen=True)
class PromptGroup:
    """Prompts of one kind and one number of categories, repetitions or steps."""

    kind: Kind
    size: int
    count: int


def prompt_groups(per_count: int) -> list[PromptGroup]:
    """2,000 prompts for a `per_count` of 100: of each kind five times as many."""
    groups = [PromptGroup(kind, size, per_count) for kind in ("category", "count") for size in range(1, MOST + 1)]
    pairs = MOST * per_count // 2
    groups += [PromptGroup("order", 2, pairs), PromptGroup("order", 3, MOST * per_count - pairs)]
    return [*groups, PromptGroup("timestamp", 1, MOST * per_count)]


def write_prompts(
    endpoint: Endpoint, per_count: int, seconds: float, answers: Path, concurrency: int
) -> list[InstructionPrompt]:
    """The prompts of all groups. The file `answers` keeps what the model said, so that the same call resumes.

    Raises ValueError where the endpoint refuses the key or the model, gives no answer, or too few different prompts.
    """
    client = EndpointClient(endpoint)
    with closing(AnswerCache(answers)) as cache, ThreadPoolExecutor(concurrency) as pool:
        groups = prompt_groups(per_count)
        try:
            found = list(pool.map(lambda group: _write_group(group, client, cache, seconds), groups))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    prompts = []
    for kind in ASKED:
        of_kind = [item for group, items in zip(groups, found, strict=True) if group.kind == kind for item in items]
        prompts += [_prompt(kind, number, item) for number, item in enumerate(of_kind, start=1)]
    return prompts


def _write_group(
    group: PromptGroup, client: EndpointClient, cache: AnswerCache, seconds: float
) -> list[dict[str, Any]]:
    """As many different prompts as the group needs, each with all events."""
    needed = -(-group.count // BATCH)
    found: dict[str, dict[str, Any]] = {}
    for number in range(SPARE * needed):
        for item in _batch(group, number, client, cache, seconds):
            found.setdefault(item["text"].strip().lower(), item)
        if len(found) >= group.count:
            return list(found.values())[: group.count]
    raise ValueError(
        f"{client.endpoint.url} wrote {len(found)} different prompts of type {group.kind} with {group.size} in "
        f"{SPARE * needed} requests, {group.count} are needed; use another --model, or fewer with --per-count"
    )


def _batch(
    group: PromptGroup, number: int, client: EndpointClient, cache: AnswerCache, seconds: float
) -> Iterator[dict[str, Any]]:
    wanted = ASKED[group.kind].format(size=group.size, seconds=seconds)
    topic = TOPICS[number % len(TOPICS)]
    asked = f"Write {BATCH} prompts about {topic}, batch {number + 1}. {wanted}"
    key = hashlib.sha256(json.dumps([SYSTEM, asked, client.endpoint.model]).encode()).hexdigest()
    answer = cache.get(key)
    if answer is None or not answer.text:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]
        try:
            said = client.ask_json(messages, _schema(group, seconds), lambda said: _check(group, said))
        except (EndpointDown, AnswerRefused) as error:
            raise ValueError(f"{client.endpoint.url}: {redacted(str(error))}; the same command continues") from None
        answer = CachedAnswer(json.dumps(said))
        cache.put(key, answer)
    for item in strict.parse_json(answer.text)["prompts"]:
        events = item["events"] * group.size if group.kind == "count" else item["events"]
        yield item | {"events": [event.strip() for event in events]}


def _schema(group: PromptGroup, seconds: float) -> dict[str, Any]:
    number = group.size if group.kind in ("category", "order") else 1
    text = {"type": "string", "pattern": r"\S"}
    properties: dict[str, Any] = {
        "text": text,
        "events": {"type": "array", "items": text, "minItems": number, "maxItems": number},
    }
    if group.kind == "timestamp":
        properties |= {key: {"type": "number", "minimum": 0, "maximum": seconds} for key in ("start", "end")}
    item = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    prompts = {"type": "array", "items": item, "minItems": 1, "maxItems": 2 * BATCH}
    return {"type": "object", "properties": {"prompts": prompts}, "required": ["prompts"]}


def _check(group: PromptGroup, said: dict[str, Any]) -> None:
    for item in said["prompts"]:
        _prompt(group.kind, 1, item)


def _prompt(kind: Kind, number: int, item: dict[str, Any]) -> InstructionPrompt:
    """Raises ValueError where the item is no prompt of its kind."""
    return strict.parse(InstructionPrompt, {"id": f"{kind}_{number:04d}", "kind": kind, **item})
