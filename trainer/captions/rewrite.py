"""Write varied captions of a manifest's lines by a second model, which hears the sound and sees its annotation (section
III-B, appendix A-A 2).

Each kind of caption has a prompt of its own, and is asked for where a line has the fields that it is about. A caption
is stored with its source, which is the model's name, and its kind.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..core.english import amount
from ..manifest.endpoint import TIME_TOLERANCE, Endpoint
from ..manifest.manifest import ManifestEntry, written_caption
from ..prepare.decode import Rejection
from ..stages.stage import StageResult
from .ask_lines import LineAnswer, Question

LONGEST = 500  # letters of a caption
ANSWER_TOKENS = 40  # of a caption, about
COMMON = """You write captions of recordings for training a model that makes sound from text. Listen to the recording,
and read what is known of it. Answer with one JSON object, {"captions": [...]}, and nothing else. Each caption is one
English sentence as a user might type it, true of the recording, and worded differently from the others and from those
that are known. Do not mention the recording, the annotation or yourself."""


@dataclass(frozen=True)
class Kind:
    """A kind of caption: the annotation that it is written from, and what it is to say."""

    name: str
    field: str
    prompt: str


KINDS = {
    "audio": (
        Kind("rephrase", "caption", "Say what the known caption says in other words and in another structure."),
        Kind("count", "category", "Say which sounds are heard, and how often each that has a count. Nothing else."),
        Kind("time", "SED", "Say when each sound event is heard: its start and its end in seconds, as numbers."),
        Kind("order", "time_relation", "Say in which order the sounds follow one another, or that they interleave."),
    ),
    "music": (
        Kind("genre", "genre", "Say which genre the music belongs to."),
        Kind("mood", "mood", "Say which mood the music has."),
        Kind("instruments", "instruments", "Say which instruments are played, and which part they have."),
        Kind("tempo", "tempo", "Say how fast the music is, in words or in beats per minute."),
    ),
}
KIND_NAMES = tuple(kind.name for kinds in KINDS.values() for kind in kinds)
_EXCUSE = re.compile(r"(?i)\b(?:as an ai|language model|i(?:'m| am) (?:sorry|unable)|i can(?:no|')t|json)\b")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Rewriting:
    """The interview: one question per kind that a line's fields allow and of which it has no caption by this model."""

    endpoint: Endpoint
    kinds: tuple[str, ...] = KIND_NAMES
    captions: int = 2  # per kind

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in KIND_NAMES]:
            raise ValueError(f"kinds: {unknown[0]!r}; allowed are {', '.join(KIND_NAMES)}")

    def questions(self, entry: ManifestEntry) -> list[Question]:
        written = {origin.kind for origin in entry.origins.values() if origin.source == self.endpoint.model}
        return [
            self._question(entry, kind)
            for kind in KINDS[entry.domain]
            if kind.name in self.kinds and kind.name not in written and entry.annotation.get(kind.field)
        ]

    def _question(self, entry: ManifestEntry, kind: Kind) -> Question:
        facts = {kind.field: entry.annotation[kind.field], "caption": entry.annotation.get("caption")}
        known = json.dumps({key: value for key, value in facts.items() if value} | {"captions": entry.captions})
        asked = f"Known: {known}. Write {amount(self.captions, 'caption')}."
        check = partial(_check_answer, kind, entry)
        tokens = ANSWER_TOKENS * self.captions
        return Question(kind.name, f"{COMMON}\n\n{kind.prompt}", asked, tokens, self._schema, check)

    def _schema(self, seconds: float) -> dict[str, Any]:
        text = {"type": "string", "pattern": r"[A-Za-z]{2}", "maxLength": LONGEST}
        captions = {"type": "array", "items": text, "minItems": self.captions, "maxItems": self.captions}
        return {
            "type": "object",
            "properties": {"captions": captions},
            "required": ["captions"],
            "additionalProperties": False,
        }

    def result(self, entry: ManifestEntry, answers: Mapping[str, LineAnswer]) -> StageResult:
        captions: list[Any] = [written_caption(text, entry) for text in entry.captions]
        left_out, amounts = [], dict[str, float]()
        for kind, answer in answers.items():
            new = [text.strip() for text in answer.value.get("captions", ())]
            captions += [{"text": text, "source": self.endpoint.model, "kind": kind} for text in new]
            if new:
                amounts[f"{kind} written"] = float(len(new))
            else:
                left_out.append(Rejection(entry.line, entry.name, answer.reason, f"{kind}: {answer.detail}"))
        if not answers:
            amounts["nothing to write from"] = 1.0
        changes = {"captions": captions} if len(captions) > len(entry.captions) else {}
        return StageResult([changes], left_out, amounts=amounts)


def _check_answer(kind: Kind, entry: ManifestEntry, answer: dict[str, Any], seconds: float) -> None:
    """Raises ValueError for captions that cannot be what was asked for."""
    texts = [text.strip() for text in answer["captions"]]
    known = {text.lower() for text in (*entry.captions, entry.annotation.get("caption") or "")}
    for i, text in enumerate(texts):
        shown = f"{text[:80]!r}"
        if _EXCUSE.search(text):
            raise ValueError(f"{shown} is no caption")
        if text.lower() in known or text in texts[:i]:
            raise ValueError(f"{shown} is there already")
        if kind.name in ("count", "time", "order") and not _names_a_sound(text, entry):
            raise ValueError(f"{shown} names none of the known sounds")
        if kind.name == "time":
            numbers = [float(number) for number in _NUMBER.findall(text)]
            if not numbers or max(numbers) > seconds + TIME_TOLERANCE:
                raise ValueError(f"{shown} needs times in seconds, from 0 to {seconds:.1f}")


def _names_a_sound(text: str, entry: ManifestEntry) -> bool:
    """Whether the text has the beginning of a word of a known sound: models bend words ("dogs", "barking")."""
    notes = entry.annotation
    names = [*(notes.get("category") or ()), *(event["event"] for event in notes.get("SED") or ())]
    words = re.findall(r"\w{3,}", " ".join([*names, notes.get("time_relation") or ""]).lower())
    return not words or any(word[:4] in text.lower() for word in words)
