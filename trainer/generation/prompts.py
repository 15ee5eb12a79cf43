"""A user's request for one sound: on the command line, in Python, or as a line of a JSON-lines file.

{"text": "a bell, then two kicks", "seed": 3, "out": "bell.wav"}
{"video": "clip.mp4", "text": "a dog barks", "out": "clip_with_dog.mp4"}
{"audio": "song.flac", "mask": "62-64.5"}
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...models import strict
from ...models.config import MAX_GUIDANCE, MAX_STEPS
from ..core.addresses import ADDRESS
from ..core.credentials import redacted
from ..core.english import complaint_list, lines_wrong
from ..core.tasks import TASKS, TaskName

PATH_FIELDS = ("video", "audio", "continue_from")
MAX_SEED = 2**62
MAX_SECONDS = 14_400.0  # four hours: all of a sound is in memory


@dataclass(frozen=True)
class Prompt:
    """One sound. The fields are the keys of a line, and options of launch/generate.py.

    Raises ValueError, beginning with the field's name, where they do not fit together.
    """

    text: str | None = None
    video: str | None = None  # path of the pictures that the sound fits
    start: float = 0.0  # second of the video at which the sound begins
    audio: str | None = None  # path of a sound in which the hole `mask` is filled
    mask: str | None = None  # "START-END", seconds of `audio`
    continue_from: str | None = None  # path of a beginning
    prefix: float | None = None  # seconds of it to keep; None: all of it
    seconds: float | None = None  # length of the sound; None: that of the video, or a clip
    task: TaskName | None = None  # None: follows from the other fields
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    rescale: float | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        self._check_fields()
        self._check_numbers()
        if self.task:
            self._check_task(self.task)

    @property
    def hole(self) -> tuple[float, float]:
        """The mask's start and end in seconds. Raises ValueError where it is none."""
        start, _, end = (self.mask or "").partition("-")
        try:
            span = float(start), float(end)
        except ValueError:
            raise ValueError(f"mask: {self.mask!r} is not START-END in seconds, as 2.0-4.5") from None
        if not 0 <= span[0] < span[1] < math.inf:
            raise ValueError(f"mask: {self.mask!r}: the end must lie after the start, and the start at 0 or later")
        return span

    @property
    def task_label(self) -> str:
        """The task; "T2A/T2M" where only the text can tell whether it is sound or music."""
        if self.task:
            return self.task
        audio = "around a hole" if self.mask else "preceding" if self.continue_from else None
        tasks = [t for t in TASKS.values() if t.audio == audio and (audio or t.video == bool(self.video))]
        defaults = [t for t in tasks if t.default_text and (audio or self.text in (None, t.default_text))]
        return defaults[0].name if defaults else "/".join(t.name for t in tasks if t.text)

    @property
    def full_text(self) -> str:
        """The text, or the task's default text where it has none (section IV-B)."""
        return self.text if self.text is not None else TASKS[self.task_label].default_text or ""

    @property
    def mixes_tasks(self) -> bool:
        """Whether no task of training has all these conditions."""
        return bool(self.video and (self.audio or self.continue_from))

    def _check_fields(self) -> None:
        for name in ("text", *PATH_FIELDS, "out"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise ValueError(f"{name}: empty; leave it out")
        if not (self.text or self.video or self.audio or self.continue_from):
            raise ValueError("text: there is no condition; give text, video, audio with mask, or continue_from")
        if self.audio and self.continue_from:
            raise ValueError("audio: audio and continue_from are mutually exclusive; give one of them")
        if bool(self.audio) != bool(self.mask):
            raise ValueError("mask: audio and mask belong together; the mask names the seconds to fill")
        if self.prefix is not None and not self.continue_from:
            raise ValueError("prefix: names how much of continue_from is kept; give that file")
        if self.start and not self.video:
            raise ValueError("start: names where in a video the sound begins; give the video")
        if self.seconds is not None and self.mask:
            raise ValueError("seconds: a sound with a hole keeps its length; leave seconds out")

    def _check_numbers(self) -> None:
        if self.mask:
            _ = self.hole
        for name in ("prefix", "seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= MAX_SECONDS:
                raise ValueError(f"{name}: {value:g} must be above 0 seconds, and at most {MAX_SECONDS:g}")
        if not 0 <= self.start <= MAX_SECONDS:
            raise ValueError(f"start: {self.start:g} must be 0 seconds or more, and at most {MAX_SECONDS:g}")
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"seed: {self.seed} must be 0 or more, and below 2^62")
        if self.steps is not None and not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"steps: {self.steps}; a sampler takes at least 1, and at most {MAX_STEPS}")
        if self.guidance is not None and not 0 <= self.guidance <= MAX_GUIDANCE:
            raise ValueError(f"guidance: {self.guidance:g} must be from 0 to {MAX_GUIDANCE:g}; 1 is none")
        if self.rescale is not None and not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale: {self.rescale:g} must be from 0 to 1; 0 is none")

    def _check_task(self, task: TaskName) -> None:
        """Refuse an explicit task that lacks a condition, or has one that makes it another task."""
        audio = TASKS[task].audio
        needs = {"mask": audio == "around a hole", "continue_from": audio == "preceding"}
        if not audio:  # with a given sound, text and video are optional
            needs = {"text": TASKS[task].text, "video": TASKS[task].video} | needs
        given = {name for name in needs if getattr(self, name)}
        if missing := [name for name, needed in needs.items() if needed and name not in given]:
            raise ValueError(f"task: {task} needs {missing[0]}; give it, or leave the task out")
        if self.text == TASKS[task].default_text:
            given.discard("text")
        if extra := [name for name in needs if name in given and not needs[name]]:
            raise ValueError(f"task: {task} has no {extra[0]}; leave one of the two out")


def parse_prompt(keys: Mapping[str, Any], folder: Path) -> Prompt:
    """The prompt with these keys; relative paths start from `folder`.

    Raises ValueError where a key is unknown, of the wrong type or contradicts another, or a path names no file.
    """
    prompt: Prompt = strict.parse(Prompt, dict(keys))
    for name in PATH_FIELDS:
        if ADDRESS.match(value := getattr(prompt, name) or ""):
            raise ValueError(f"{name}: {redacted(value)} is an address; download it, and give the file")
    paths: dict[str, Any] = {name: str(folder / value) for name in PATH_FIELDS if (value := getattr(prompt, name))}
    for name, path in paths.items():
        try:
            if not Path(path).is_file():
                raise ValueError(f"{name}: {path}: {'not a file' if Path(path).exists() else 'no such file'}")
        except OSError as error:  # a name that is too long
            raise ValueError(f"{name}: {path[:80]}…: {error.strerror}") from None
    return replace(prompt, **paths)


def read_prompts(path: Path, defaults: Mapping[str, Any]) -> list[tuple[int, Prompt]]:
    """The prompts of a file, each with its line number. Relative paths start from the file's folder.

    `defaults` fill the keys that a line leaves out. A line without a seed gets the default seed plus its number minus
    one, so that no two lines start from the same noise. Empty lines are skipped.

    Raises:
        ValueError: the file cannot be read or is empty, or lines are wrong; the message counts those and names the
            first ones.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"prompts {path}: {error.strerror}") from error
    prompts, wrong = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            keys = {**defaults, "seed": defaults.get("seed", 0) + number - 1, **_object(line)}
            prompts.append((number, parse_prompt(keys, path.parent)))
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
    if wrong:
        count = lines_wrong(len(wrong), len(wrong) + len(prompts))
        raise ValueError(complaint_list(wrong, f"prompts {path}: {count}; nothing was generated"))
    if not prompts:
        raise ValueError(f'prompts {path}: has no line; expected one JSON object per line, as {{"text": "a bell"}}')
    return prompts


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = strict.parse_json(line.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"not JSON ({error}): {line[:80]!r}") from error
    if not isinstance(value, dict):
        raise ValueError(f'{line[:80]!r} is not an object like {{"text": "a bell"}}')
    return value
