"""A user's request for one sound: on the command line, in Python, or as a line of a JSON-lines file.

{"text": "a bell, then two kicks", "seed": 3, "out": "bell.wav"}
{"video": "clip.mp4", "text": "a dog barks", "out": "clip_with_dog.mp4"}
{"audio": "song.flac", "mask": "62-64.5"}

Or as a row of a CSV file, whose first line has the keys.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...models import strict
from ...models.config import MAX_GUIDANCE, MAX_STEPS
from ...models.interval import parse_interval
from ..core.addresses import ADDRESS
from ..core.credentials import redacted
from ..core.english import complaint_list, lines_wrong
from ..core.tasks import TASKS, TaskName

PATH_FIELDS = ("video", "audio", "continue_from", "vary")
NUMBERS = {"seed": int, "steps": int} | dict.fromkeys(
    ("start", "prefix", "seconds", "guidance", "rescale", "level", "loudness"), float
)
SWITCHES = ("follow", "loop")
FLAGS = {"true": True, "false": False}
QUIETEST = -60.0  # LUFS
VARIATION_LEVEL = 0.6
MAX_SEED = 2**62
MAX_SECONDS = 14_400.0  # four hours: all of a sound is in memory


@dataclass(frozen=True)
class Prompt:
    """One sound. The fields are the keys of a line, and but for `reference` options of launch/generate.py.

    Raises ValueError, beginning with the field's name, where they do not fit together.
    """

    text: str | None = None
    video: str | None = None  # path of the pictures that the sound fits
    start: float = 0.0  # second of the video at which the sound begins
    audio: str | None = None  # path of a sound in which the hole `mask` is filled
    mask: str | None = None  # "START-END", seconds of `audio`
    continue_from: str | None = None  # path of a beginning
    prefix: float | None = None  # seconds of it to keep; None: all of it
    follow: bool = False  # a clip of its own begins where that ends, as completion pairs train it
    vary: str | None = None  # path of a sound that is varied
    level: float | None = None  # of the noise that is added to it; None: VARIATION_LEVEL
    seconds: float | None = None  # length of the sound; None: that of the video, or a clip
    task: TaskName | None = None  # None: follows from the other fields
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    guidance_interval: str | None = None  # "LOWEST-HIGHEST", noise levels with guidance
    rescale: float | None = None
    negative: str | None = None  # text that guidance leads away from
    loop: bool = False  # its end continues in its beginning
    loudness: float | None = None  # LUFS of the finished sound; None: as it is generated
    out: str | None = None
    reference: str | None = None  # path of the true sound, which launch/evaluate.py compares with; never read here

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
    def first_level(self) -> float:
        """The noise level at which sampling begins."""
        return (VARIATION_LEVEL if self.level is None else self.level) if self.vary else 1.0

    def _check_fields(self) -> None:
        for name in ("text", *PATH_FIELDS, "negative", "out", "reference"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise ValueError(f"{name}: empty; leave it out")
        if not (self.text or self.video or self.audio or self.continue_from):
            raise ValueError("text: there is no condition; give text, video, audio with mask, or continue_from")
        if self.audio and self.continue_from:
            raise ValueError("audio: audio and continue_from are mutually exclusive; give one of them")
        if self.vary and (self.audio or self.continue_from):
            raise ValueError("vary: a varied sound stays nowhere as it was given; leave audio and continue_from out")
        if self.level is not None and not self.vary:
            raise ValueError("level: names how much noise is added to a sound that is varied; give vary")
        if self.loop and (self.video or self.audio or self.continue_from):
            raise ValueError("loop: a sound that fits a video or keeps a given one has ends; leave one of the two out")
        if bool(self.audio) != bool(self.mask):
            raise ValueError("mask: audio and mask belong together; the mask names the seconds to fill")
        if self.prefix is not None and not self.continue_from:
            raise ValueError("prefix: names how much of continue_from is kept; give that file")
        if self.follow and not self.continue_from:
            raise ValueError("follow: a clip follows the end of continue_from; give that file")
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
        if self.guidance_interval:
            try:
                parse_interval(self.guidance_interval)
            except ValueError as error:
                raise ValueError(f"guidance_interval: {error}") from None
        if self.level is not None and not 0 < self.level < 1:
            raise ValueError(f"level: {self.level:g} must be between 0 and 1; nearer to 1 leaves less of the sound")
        if self.loudness is not None and not QUIETEST <= self.loudness <= 0:
            raise ValueError(f"loudness: {self.loudness:g} must be from {QUIETEST:g} to 0 LUFS")
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


def parse_prompt(keys: Mapping[str, Any], folder: Path, check_files: bool = True) -> Prompt:
    """The prompt with these keys; relative paths start from `folder`.

    Raises ValueError where a key is unknown, of the wrong type or contradicts another, or with `check_files` a path
    names no file.
    """
    prompt: Prompt = strict.parse(Prompt, dict(keys))
    for name in PATH_FIELDS:
        if ADDRESS.match(value := getattr(prompt, name) or ""):
            raise ValueError(f"{name}: {redacted(value)} is an address; download it, and give the file")
    paths: dict[str, Any] = {name: str(folder / value) for name in PATH_FIELDS if (value := getattr(prompt, name))}
    for name, path in paths.items() if check_files else ():
        try:
            if not Path(path).is_file():
                raise ValueError(f"{name}: {path}: {'not a file' if Path(path).exists() else 'no such file'}")
        except OSError as error:  # a name that is too long
            raise ValueError(f"{name}: {path[:80]}…: {error.strerror}") from None
    if prompt.reference:
        paths["reference"] = str(folder / prompt.reference)
    return replace(prompt, **paths)


def read_prompts(path: Path, defaults: Mapping[str, Any], check_files: bool = True) -> list[tuple[int, Prompt]]:
    """The prompts of a file, each with its line number. Relative paths start from the file's folder.

    `defaults` fill the keys that a line leaves out. A line without a seed gets the default seed plus its number minus
    one, so that no two lines start from the same noise. Empty lines are skipped. `check_files`: as of `parse_prompt`.

    Raises:
        ValueError: the file cannot be read or is empty, or lines are wrong; the message counts those and names the
            first ones.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"prompts {path}: {error.strerror}") from error
    lines = _rows(data) if path.suffix.lower() == ".csv" else enumerate(data.splitlines(), start=1)
    prompts, wrong = [], []
    for number, line in lines:
        if isinstance(line, bytes) and not line.strip():
            continue
        try:
            own = _object(line) if isinstance(line, bytes) else _from_cells(line)
            keys = {**defaults, "seed": defaults.get("seed", 0) + number - 1, **own}
            prompts.append((number, parse_prompt(keys, path.parent, check_files)))
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
    if wrong:
        count = lines_wrong(len(wrong), len(wrong) + len(prompts))
        raise ValueError(complaint_list(wrong, f"prompts {path}: {count}; nothing was generated"))
    if not prompts:
        expected = "keys in its first line, and" if path.suffix.lower() == ".csv" else "one JSON object per line,"
        raise ValueError(f'prompts {path}: has no line; expected {expected} as {{"text": "a bell"}}')
    return prompts


def _rows(data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV file with their line numbers; those without any value are left out.

    Raises ValueError where it is no text, or no CSV.
    """
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        for row in reader:
            if any(value for value in row.values()):
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"prompts: not CSV in UTF-8 ({error})") from None


def _from_cells(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row's keys with a value, numbers as such. Raises ValueError where it has more cells than the first line."""
    if None in row:
        raise ValueError(f"{len(row[None])} cells more than the first line has keys")
    keys = {}
    for name, cell in row.items():
        if cell:
            if name in SWITCHES and cell.lower() not in FLAGS:
                raise ValueError(f"{name}: {cell[:80]!r} is neither true nor false")
            try:
                keys[name] = FLAGS[cell.lower()] if name in SWITCHES else NUMBERS.get(name, str)(cell)
            except ValueError:
                raise ValueError(f"{name}: {cell[:80]!r} is no number") from None
    return keys


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = strict.parse_json(line.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"not JSON ({error}): {line[:80]!r}") from error
    if not isinstance(value, dict):
        raise ValueError(f'{line[:80]!r} is not an object like {{"text": "a bell"}}')
    return value
