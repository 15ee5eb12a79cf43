"""The judge of T2A-bench (appendix A-C): a model that hears annotates a sound without its prompt, and then decides by
annotation and prompt.

An annotation depends on the sound alone, and a decision on annotation and prompt: equal ones are asked for once.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soxr

from ...models import strict
from ..core.credentials import redacted
from ..core.files import hash_file
from ..manifest.answer_cache import AnswerCache, CachedAnswer
from ..manifest.asking import ask_all
from ..manifest.endpoint import TIME_TOLERANCE, AnswerRefused, EndpointClient, EndpointDown
from ..manifest.message_parts import sound_part
from ..media.audio_decode import decode_native
from ..media.source import MediaError, open_media
from .bench_prompts import InstructionPrompt

HEARD = 16_000  # Hz: more than models hear; lower rates are sent as they are
ANNOTATE = """You annotate a recording. You do not know what it was meant to be. Listen, and answer with one JSON object
and nothing else. Say what you hear, not what you suppose.

counts: an object of the names of all sounds with how often each is heard; null for a sound that is continuous or cannot
be counted, as flowing water.
order: the names in the order in which they are heard, repeated as often as they are; null if they have no distinct
order, as sounds at the same time.
events: a list of {"event": name, "start": seconds, "end": seconds}, in order of time."""
DECIDE = """You examine whether a recording follows its prompt, by an annotation that somebody made who did not know the
prompt. The annotation is all that you know of the recording. Names may differ where they mean the same sound. Answer
with one JSON object and nothing else.

category: 1 if every sound that the prompt names is in the annotation, else 0.
count (type count): 1 if the sound is heard exactly as often as the prompt says, else 0. A count of null is never right.
order (type order): 1 if the sounds follow one another exactly as the prompt says, else 0. An order of null is never
right.
timestamp (type timestamp): 1 if start and end of the sound both lie within __TOLERANCE__ s of those of the prompt, else
0. If it is heard several times, the longest counts.
analysis: why, in one to three sentences."""
NOT_CATEGORY = ("count", "order", "timestamp")
Check = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class SoundQuestion:
    """What is heard in a sound?"""

    key: str
    path: Path


@dataclass(frozen=True)
class DecisionQuestion:
    """Does an annotation follow a prompt?"""

    key: str
    prompt: InstructionPrompt
    annotation: str  # as the model answered


class HearingJudge:
    """Asks about sounds and decides, from a file of answers where they are there. `tolerance`: seconds of time stamps.
    `again` repeats questions whose answers were refused earlier."""

    def __init__(
        self, client: EndpointClient, answers: AnswerCache, tolerance: float, concurrency: int, again: bool = False
    ) -> None:
        self.client, self.answers, self.concurrency, self.again = client, answers, concurrency, again
        self.decide = DECIDE.replace("__TOLERANCE__", f"{tolerance:g}")

    def sound_question(self, path: Path) -> SoundQuestion:
        """Equal sounds are equal questions. Raises OSError where the file cannot be read."""
        return SoundQuestion(self._key(ANNOTATE, hash_file(path)), path)

    def decision_question(self, prompt: InstructionPrompt, annotation: str) -> DecisionQuestion:
        return DecisionQuestion(self._key(self.decide, prompt.kind, prompt.text, annotation), prompt, annotation)

    def _key(self, *parts: str) -> str:
        return hashlib.sha256(json.dumps([self.client.endpoint.model, *parts]).encode()).hexdigest()

    def open_questions(self, questions: Sequence[SoundQuestion]) -> list[SoundQuestion]:
        """Those that are not answered yet, each once."""
        unique = {question.key: question for question in questions}
        return [
            q for q in unique.values() if (kept := self.answers.get(q.key)) is None or (self.again and not kept.text)
        ]

    def annotations(self, questions: Sequence[SoundQuestion]) -> dict[str, CachedAnswer]:
        """Answers by key. Raises ValueError where the endpoint is down or refuses the key or the model."""
        unique = {question.key: question for question in questions}
        url = self.client.endpoint.url
        found = ask_all(
            list(unique.values()), self.answers, self._annotate, self.concurrency, self.again, url, "sounds"
        )
        return {question.key: answer for question, answer, _ in found}

    def decisions(self, questions: Sequence[DecisionQuestion]) -> dict[str, CachedAnswer]:
        """As `annotations`."""
        unique = {question.key: question for question in questions}
        url = self.client.endpoint.url
        found = ask_all(
            list(unique.values()), self.answers, self._decide, self.concurrency, self.again, url, "decisions"
        )
        return {question.key: answer for question, answer, _ in found}

    def _annotate(self, question: SoundQuestion) -> tuple[CachedAnswer, bool]:
        try:
            with open_media(question.path) as source:
                sound = decode_native(source)
        except MediaError as error:  # the file may be repaired, so this is not saved
            return CachedAnswer("", f"{error.reason}: {error}"), False
        seconds = sound.wave.size / sound.rate
        rate = min(sound.rate, HEARD)
        wave = sound.wave if rate == sound.rate else soxr.resample(sound.wave, sound.rate, rate)
        text = {"type": "text", "text": f"A recording of {seconds:.3f} s."}
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": ANNOTATE},
            {"role": "user", "content": [text, sound_part(wave, rate)]},
        ]
        return self._ask(question.key, messages, _annotation_schema(seconds), _check_annotation)

    def _decide(self, question: DecisionQuestion) -> tuple[CachedAnswer, bool]:
        prompt = question.prompt
        known = {"type": prompt.kind, "prompt": prompt.text, "annotation": strict.parse_json(question.annotation)}
        messages = [{"role": "system", "content": self.decide}, {"role": "user", "content": json.dumps(known)}]
        return self._ask(question.key, messages, _decision_schema(prompt.kind), lambda answer: None)

    def _ask(
        self, key: str, messages: list[dict[str, Any]], schema: dict[str, Any], check: Any
    ) -> tuple[CachedAnswer, bool]:
        try:
            answer = CachedAnswer(json.dumps(self.client.ask_json(messages, schema, check)))
        except EndpointDown as error:
            return CachedAnswer("", redacted(f"no answer: {error}")), True
        except AnswerRefused as error:
            answer = CachedAnswer("", redacted(str(error)))
        self.answers.put(key, answer)
        return answer, False


def _annotation_schema(seconds: float) -> dict[str, Any]:
    name = {"type": "string", "pattern": r"\S"}
    time = {"type": "number", "minimum": 0, "maximum": round(seconds + TIME_TOLERANCE, 3)}
    event = {
        "type": "object",
        "properties": {"event": name, "start": time, "end": time},
        "required": ["event", "start", "end"],
        "additionalProperties": False,
    }
    counts = {
        "type": "object",
        "additionalProperties": {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 1}]},
    }
    properties = {
        "counts": counts,
        "order": {"anyOf": [{"type": "null"}, {"type": "array", "items": name}]},
        "events": {"type": "array", "items": event},
    }
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _check_annotation(answer: dict[str, Any]) -> None:
    """Raises ValueError where parts of an annotation contradict one another."""
    names = set(answer["counts"])
    for place, used in (("order", answer["order"] or []), ("events", [each["event"] for each in answer["events"]])):
        if strange := [name for name in used if name not in names]:
            raise ValueError(f"{place} has {strange[0]!r}, which counts does not have")
    if late := [each for each in answer["events"] if each["end"] < each["start"]]:
        raise ValueError(f"events: {late[0]['event']!r} ends before it starts")


def _decision_schema(kind: str) -> dict[str, Any]:
    metrics = ["category", *([kind] if kind in NOT_CATEGORY else [])]
    properties: Mapping[str, Any] = {name: {"enum": [0, 1]} for name in metrics} | {"analysis": {"type": "string"}}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
