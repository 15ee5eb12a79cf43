"""Prompts that are nearly right: each is refused with its line, or makes one sound, bounded, in its folder."""

import dataclasses
import json
import math

import numpy as np
import pytest
import soundfile

from audiox_trainer.trainer.core.tasks import TASKS
from audiox_trainer.trainer.generation.output_files import assign_files
from audiox_trainer.trainer.generation.prompts import PATH_FIELDS, Prompt, read_prompts
from tests.helpers.fuzzing import both, changed_bytes, changed_json, refusal

GOOD = [
    {"text": "a bell, then two kicks", "seed": 3, "out": "bell.wav", "seconds": 4.5, "steps": 10, "guidance": 2.0},
    {"video": "v.mp4", "text": "a dog barks", "out": "clip.flac", "start": 1.0, "task": "TV2A"},
    {"audio": "a.wav", "mask": "0.2-0.5", "seed": 1},
    {"continue_from": "a.wav", "prefix": 0.5, "text": "a siren"},
    {"text": "drums", "loop": True, "loudness": -23.0, "seconds": 2.0},
]
REASONS = (
    "not JSON",
    "unknown key",
    "is not allowed; expected",
    "no such file",
    "an address",
    "outside",
    "must",
    "empty",
    "format",
    "belong",
    "is the",
    "give the",
    "name too long",
    "exclusive",
    "leave one of the two out",
)


@pytest.fixture
def folder(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    (tmp_path / "v.mp4").write_bytes(b"looked at later")
    return tmp_path


def attempt(folder, data):
    path, out = folder / "p.jsonl", folder / "sounds"
    path.write_bytes(data)
    try:
        prompts = read_prompts(path, {})
        jobs = assign_files(prompts, out, 2)
    except ValueError as error:
        return refusal(error, REASONS, "line ", "has no line")
    assert len(prompts) == len([line for line in data.splitlines() if line.strip()]) and len(jobs) == 2 * len(prompts)
    assert len({job.out for job in jobs}) == len(jobs) and len({job.prompt.seed for job in jobs[:2]}) == 2
    for job in jobs:
        check(job.prompt, folder)
        assert job.out.resolve().is_relative_to(out.resolve()) and job.out.suffix
    for line, (_, prompt) in zip(data.splitlines(), prompts, strict=False):
        for key, value in json.loads(line.decode("utf-8-sig")).items():
            assert key in PATH_FIELDS or getattr(prompt, key) == value, f"{key} has changed"
    return ""


def check(prompt, folder):
    assert prompt == Prompt(**dataclasses.asdict(prompt)) and (prompt.task is None or prompt.task in TASKS)
    assert prompt.text or any(getattr(prompt, name) for name in PATH_FIELDS)
    assert 0 <= prompt.seed < 2**63 and 1 <= (prompt.steps or 1) <= 10_000 and 0 <= (prompt.guidance or 0) <= 1000
    assert 0 <= prompt.start <= 14_400 and all(
        0 < n <= 14_400 for n in (prompt.seconds, prompt.prefix) if n is not None
    )
    assert not prompt.mask or 0 <= prompt.hole[0] < prompt.hole[1] < math.inf
    for name in PATH_FIELDS:
        assert getattr(prompt, name) in (None, str(folder / "a.wav"), str(folder / "v.mp4"), str(folder / "p.jsonl"))
    for text in filter(None, (prompt.text, prompt.full_text, prompt.task_label, prompt.out)):
        text.encode()


@both
@pytest.mark.parametrize("good", GOOD, ids=range(len(GOOD)))
def test_values(fuzzer, share, folder, good):
    inputs = changed_json(good).map(lambda value: json.dumps(value).encode() + b"\n")
    assert all(fuzzer.run("prompts, values", inputs, 60 * share, lambda data: attempt(folder, data)))


@both
def test_bytes(fuzzer, share, folder):
    good = "".join(json.dumps(line) + "\n" for line in GOOD).encode()
    inputs = changed_bytes(good, most=3)
    assert all(fuzzer.run("prompts, bytes", inputs, 60 * share, lambda data: attempt(folder, data)))
