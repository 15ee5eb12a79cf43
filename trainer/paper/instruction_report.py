"""The report of T2A-bench on folders of sounds: the four accuracies with intervals, and paired differences."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ...models import strict
from ..core.english import amount, complaint_list
from ..manifest.prices import LETTERS, Price
from ..media.header import header_seconds
from ..media.source import MediaError
from ..pages.tables import Cell, Table
from ..scorers.statistics import bootstrap_interval, mark_significant, paired_difference
from ..sound_evaluation.folders import SoundFolder
from .bench_prompts import METRICS, InstructionPrompt
from .hearing_judge import ANNOTATE, DECIDE, HearingJudge

ANNOTATION_TOKENS, DECISION_TOKENS = 300, 120  # of an answer, about
Row = dict[str, Any]


@dataclass(frozen=True)
class Estimate:
    """What is to be asked at most, and about how many tokens that takes."""

    sounds: int
    seconds: float
    decisions: int
    input_tokens: float
    output_tokens: float
    money: float

    def __str__(self) -> str:
        return (
            f"at most {amount(self.sounds, 'sound')} to annotate ({self.seconds / 3600:.2f} h) and "
            f"{amount(self.decisions, 'decision')}: about {self.input_tokens / 1e6:.3f} M tokens to read and "
            f"{self.output_tokens / 1e6:.3f} M to write, {self.money:.2f} at these prices"
        )


def estimate_price(
    judge: HearingJudge, prompts: Sequence[InstructionPrompt], folders: Sequence[SoundFolder], price: Price
) -> Estimate:
    """An upper bound of the requests: sounds without an annotation so far, and a decision for each of the others too,
    which are known only when the annotations are."""
    questions = [judge.sound_question(path) for folder in folders for path in folder.sounds.values()]
    waiting = judge.open_questions(questions)
    seconds = 0.0
    for question in waiting:
        try:
            seconds += header_seconds(question.path)
        except MediaError:
            continue  # is named when it is asked about
    decisions = sum(len(folder.sounds) for folder in folders)
    texts = sum(len(prompt.text) for prompt in prompts) * len(folders) / LETTERS
    read = len(waiting) * len(ANNOTATE) / LETTERS + seconds * price.audio_tokens
    read += decisions * (len(DECIDE) / LETTERS + ANNOTATION_TOKENS) + texts
    written = len(waiting) * ANNOTATION_TOKENS + decisions * DECISION_TOKENS
    return Estimate(len(waiting), seconds, decisions, read, written, price.money(read, written))


def judge_instructions(
    judge: HearingJudge,
    prompts: Sequence[InstructionPrompt],
    folders: Sequence[SoundFolder],
    seed: int,
    leave_out: bool,
) -> tuple[Row, list[Row]]:
    """The report, and a line for each judged sound. A prompt whose sound is missing or could not be judged in any
    folder is left out of all of them with `leave_out`.

    Raises ValueError where sounds are missing or not judged and are not to be left out, none is left, or the endpoint
    cannot be asked.
    """
    missing = [{"sounds": f.name, "id": key, "reason": "missing"} for f in folders for key in f.missing]
    _refuse(missing, leave_out)
    sounds = [(f, p, judge.sound_question(f.sounds[p.id])) for f in folders for p in prompts if p.id in f.sounds]
    heard = judge.annotations([question for _, _, question in sounds])
    decided = {(f.name, p.id): judge.decision_question(p, heard[q.key].text) for f, p, q in sounds if heard[q.key].text}
    decisions = judge.decisions(list(decided.values()))
    judgments: dict[tuple[str, str], Row] = {}
    problems = list(missing)
    for folder, prompt, question in sounds:
        asked = decided.get((folder.name, prompt.id))
        answer = decisions[asked.key] if asked else heard[question.key]
        if asked and answer.text:
            judgments[folder.name, prompt.id] = {
                "sounds": folder.name,
                "id": prompt.id,
                **strict.parse_json(answer.text),
                "annotation": strict.parse_json(asked.annotation),
            }
        else:
            problems.append({"sounds": folder.name, "id": prompt.id, "reason": answer.reason})
    _refuse(problems, leave_out)
    lost = {row["id"] for row in problems}
    kept = [prompt for prompt in prompts if prompt.id not in lost]
    if not kept:
        raise ValueError(f"none of {amount(len(prompts), 'prompt')} is left to judge")
    report = _report(kept, folders, judgments, seed)
    about: Row = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "judge": judge.client.endpoint.model}
    about |= {"folders": {f.name: f.name for f in folders}, "prompts": len(prompts), "judged": len(kept)}
    return about | report | {"left_out": problems}, list(judgments.values())


def _refuse(problems: Sequence[Row], leave_out: bool) -> None:
    if problems and not leave_out:
        lines = [f"{row['sounds']}: {row['id']}: {row['reason']}" for row in problems]
        title = f"{amount(len(lines), 'sound')} cannot be judged; --leave-out leaves their prompts out, in all folders"
        raise ValueError(complaint_list(lines, title))


def _report(
    prompts: Sequence[InstructionPrompt],
    folders: Sequence[SoundFolder],
    judgments: Mapping[tuple[str, str], Row],
    seed: int,
) -> Row:
    """Category accuracy of all prompts, and the others of their own kind."""
    results, differences = [], []
    for kind, metric in METRICS.items():
        chosen = [p.id for p in prompts if kind in ("category", p.kind)]
        if not chosen:
            continue
        values = {f.name: np.array([float(judgments[f.name, key][kind]) for key in chosen]) for f in folders}
        for name, each in values.items():
            low, high = bootstrap_interval(each, seed)
            row: Row = {"sounds": name, "metric": metric, "better": "higher", "value": float(each.mean())}
            results.append(row | {"low": low, "high": high, "prompts": len(chosen)})
        first, *others = values
        for name in others:
            difference = paired_difference(values[first], values[name], seed)
            differences.append({"metric": metric, "sounds": name, "against": first} | vars(difference))
    mark_significant(differences)
    return {"results": results, "differences": differences}


def instruction_table(report: Row, title: str, note: str) -> Table:
    """For the terminal: folders by metrics."""
    metrics = list(dict.fromkeys((row["metric"], row["better"]) for row in report["results"]))
    by_name = {(row["sounds"], row["metric"]): row for row in report["results"]}
    rows = []
    for name in report["folders"]:
        cells = [by_name[name, metric] for metric, _ in metrics]
        shown = [Cell(f"{c['value']:.3f}", f"{c['low']:.3f} to {c['high']:.3f}") for c in cells]
        rows.append([Cell(name), *shown])
    headings = ("", *(f"{metric} {'↑' if better == 'higher' else '↓'}" for metric, better in metrics))
    return Table(title, note, headings, rows)


def judgment_lines(judgments: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in judgments)
