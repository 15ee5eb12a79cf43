"""The prompts of T2A-bench on real sound (appendix A-C): four types, each with what its text asks for.

{"id": "count_0007", "kind": "count", "text": "A dog barks three times.", "events": ["dog bark", …three of them]}
{"id": "timestamp_0001", "kind": "timestamp", "text": "A bell rings from 2 to 4 seconds.", "events": ["bell"],
 "start": 2, "end": 4}
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ...models import strict
from ..core.english import complaint_list, lines_wrong
from ..sound_evaluation.folders import EvaluatedPrompt

Kind = Literal["category", "count", "order", "timestamp"]
METRICS = {"category": "Cat-acc", "count": "Cnt-acc", "order": "Ord-acc", "timestamp": "TS-acc"}  # by kind
MOST = 5  # categories or repetitions
Text = Annotated[str, Field(pattern=r"\S")]
FileName = Annotated[str, Field(pattern=r"^[\w.-]+$")]


@dataclass(frozen=True)
class InstructionPrompt:
    """A text and what it asks for: `events` by name, in order, repeated as often as they are to be heard."""

    id: FileName
    kind: Kind
    text: Text
    events: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MOST)]
    start: strict.NonNegativeFloat | None = None  # seconds; of timestamp prompts
    end: strict.NonNegativeFloat | None = None

    def __post_init__(self) -> None:
        different = len(set(self.events))
        if self.kind in ("category", "order") and different < len(self.events):
            raise ValueError(f"events: {list(self.events)} must all differ in a prompt of kind {self.kind}")
        if self.kind in ("count", "timestamp") and different > 1:
            raise ValueError(f"events: {list(self.events)} must be one sound in a prompt of kind {self.kind}")
        if self.kind == "order" and len(self.events) not in (2, 3):
            raise ValueError(f"events: {len(self.events)} in an order prompt; expected two or three")
        if self.kind == "timestamp":
            if len(self.events) > 1 or self.start is None or self.end is None or self.end <= self.start:
                raise ValueError("start: a timestamp prompt has one event, a start, and an end after it")
        elif self.start is not None or self.end is not None:
            raise ValueError(f"start: belongs to timestamp prompts, and this is of kind {self.kind}; leave it out")


def read_bench(path: Path) -> list[InstructionPrompt]:
    """Raises ValueError where the file is missing or empty, lines are wrong, or two have the same id."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(
            f"{path}: {str(error.strerror).lower()}; make the prompts with `launch/t2a_bench.py prompts`"
        ) from None
    prompts: dict[str, InstructionPrompt] = {}
    wrong = []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                prompt: InstructionPrompt = strict.parse(InstructionPrompt, strict.parse_json(line.decode("utf-8-sig")))
                if prompts.setdefault(prompt.id, prompt) is not prompt:
                    raise ValueError(f"id: {prompt.id!r} is there twice")
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
    if wrong:
        raise ValueError(complaint_list(wrong, f"{path}: {lines_wrong(len(wrong), len(wrong) + len(prompts))}"))
    if not prompts:
        raise ValueError(f"{path}: has no line; expected one prompt per line")
    return list(prompts.values())


def bench_lines(prompts: Sequence[InstructionPrompt]) -> str:
    """The text of a file that `read_bench` reads."""
    rows = [{k: v for k, v in strict.to_dict(prompt).items() if v is not None} for prompt in prompts]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def generation_lines(prompts: Sequence[InstructionPrompt]) -> str:
    """The text of a file for launch/generate.py --prompts."""
    rows = [{"task": "T2A", "text": prompt.text, "out": f"{prompt.id}.wav"} for prompt in prompts]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def evaluated_prompts(prompts: Sequence[InstructionPrompt]) -> list[EvaluatedPrompt]:
    """As folders of sounds are matched with them."""
    return [EvaluatedPrompt(prompt.id, prompt.text, None, line) for line, prompt in enumerate(prompts, start=1)]
