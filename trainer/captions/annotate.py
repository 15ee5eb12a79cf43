"""Fill missing annotation of a manifest by asking a model that hears and sees, clip by clip (section III-B).

Existing fields stay; the model is asked for missing ones of caption, category, SED and time_relation (for music:
caption, genre, mood, instruments and tempo).
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..manifest.endpoint import TIME_TOLERANCE, Endpoint
from ..manifest.manifest import AUDIO_FIELDS, MUSIC_FIELDS, ManifestEntry, line_schema, parse_entry
from ..prepare.decode import Rejection
from ..stages.stage import StageResult
from .ask_lines import LineAnswer, Question

FIELDS = {"audio": ("caption", *AUDIO_FIELDS), "music": ("caption", *MUSIC_FIELDS)}
UNKNOWN = "the model cannot tell"
ANSWER_TOKENS = 150  # about
PROMPT = """You annotate recordings for training a model that makes sound. Listen, and answer with one JSON object that
has exactly the keys you are asked for, and nothing else. Say what you hear, not what you suppose; a key that the
recording does not settle gets null.

caption: one sentence that describes everything that is heard.
category: an object of sound names with how often each is heard, {"dog bark": 2, "rain": null}; null for sounds that
are continuous or cannot be counted.
SED: a list of {"start": seconds, "end": seconds, "event": name}, in order of time, seconds from the start.
time_relation: the names in the order in which they are heard, between commas, or a word such as "interleave".
genre, mood: a few words each. instruments: a list of names. tempo: beats per minute, a number."""


@dataclass(frozen=True)
class Annotation:
    """The interview: one question about each line that lacks a field."""

    endpoint: Endpoint

    def questions(self, entry: ManifestEntry) -> list[Question]:
        fields = [name for name in FIELDS[entry.domain] if not entry.annotation.get(name)]
        if not fields:
            return []
        asked = f"Known already: {known_text(entry)}. Give the keys {', '.join(fields)}."
        check = partial(_check_answer, entry)
        return [Question("fields", PROMPT, asked, ANSWER_TOKENS, partial(answer_schema, fields), check)]

    def result(self, entry: ManifestEntry, answers: Mapping[str, LineAnswer]) -> StageResult:
        if not answers:
            return StageResult([{}], amounts={"complete already": 1.0})
        answer = answers["fields"]
        given = {name: value for name, value in answer.value.items() if value not in (None, {}, [], "")}
        missing = [name for name in FIELDS[entry.domain] if not entry.annotation.get(name) and name not in given]
        left_out = []
        if missing:
            detail = f"{', '.join(missing)}{': ' if answer.detail else ''}{answer.detail}"
            left_out.append(Rejection(entry.line, entry.name, answer.reason or UNKNOWN, detail))
        before = entry.annotation.get("extra", {}).get("annotated")
        by = (before if isinstance(before, dict) else {}) | dict.fromkeys(given, self.endpoint.model)
        changes = {**given, "annotated": by} if given else {}
        return StageResult([changes], left_out, amounts={f"{name} filled": 1.0 for name in given})


def known_text(entry: ManifestEntry) -> str:
    """The annotation and the captions of a line as JSON, for a model."""
    known = {key: value for key, value in (entry.annotation | {"captions": entry.captions}).items() if key != "extra"}
    return json.dumps({key: value for key, value in known.items() if value})


def answer_schema(fields: Sequence[str], seconds: float) -> dict[str, Any]:
    """The schema of an answer about a clip of this length: each field as in the manifest, or null."""
    schema = copy.deepcopy(line_schema())
    schema["properties"]["SED"]["items"] = {"$ref": "#/$defs/Event"}  # not the paper's form, which has whole seconds
    for name in ("start", "end"):
        schema["$defs"]["Event"]["properties"][name]["maximum"] = round(seconds + TIME_TOLERANCE, 2)
    return {
        "type": "object",
        "properties": {field: {"anyOf": [{"type": "null"}, schema["properties"][field]]} for field in fields},
        "required": list(fields),
        "additionalProperties": False,
        "$defs": schema["$defs"],
    }


def _check_answer(entry: ManifestEntry, answer: dict[str, Any], seconds: float) -> None:
    """Raises ValueError for what no manifest may have."""
    given = {key: value for key, value in answer.items() if value is not None}
    parse_entry("the answer", Path("."), entry.line, {"audio": "sound", "domain": entry.domain, **given})
