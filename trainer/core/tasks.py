"""The eight tasks (section IV-B, Table A.1): the one table that data, prompts, evaluation and reports read."""

from dataclasses import dataclass
from typing import Literal, get_args

TaskName = Literal["T2A", "V2A", "TV2A", "T2M", "V2M", "TV2M", "inpainting", "completion"]
Domain = Literal["audio", "music"]
DOMAINS: tuple[Domain, ...] = get_args(Domain)
TaskMetric = Literal["categories", "events", "music", "hole"]  # implemented by trainer/evaluation/task_benchmark.py


@dataclass(frozen=True)
class Mixture:
    """What a task may be given beside its own conditions (Tables A.6, A.7): shares of the samples whose clip has it.

    Each is drawn by itself. The paper names the mixtures and no shares; these are ours.
    """

    text: float = 0.0  # a caption in place of the default text
    video: float = 0.0
    preceding: float = 0.0  # what precedes the clip in its file, in place of the clip's own beginning


@dataclass(frozen=True)
class Task:
    """The conditions of a task, the text that replaces a missing one, and how the task is judged."""

    name: TaskName
    domain: Domain
    text: bool  # has a text of its own
    video: bool
    metric: TaskMetric
    measured: str  # the metric in words, for tables
    audio: Literal[None, "around a hole", "preceding"] = None  # the part of the sound that is given
    default_text: str | None = None  # section IV-B: a task without a text gets a natural-language description
    clips: float = 0.0  # thousands in Table A.1: the task's share of a full-size run
    mixture: Mixture = Mixture()


_EVENTS = "F1 of events by category and onset"
_MUSIC, _KEPT = "instrument and tempo right", "instrument and tempo kept"
_HOLE = "error of latents in the hole"
_INPAINTING = Mixture(text=0.5, video=0.5)
_COMPLETION = Mixture(text=0.5, video=0.5, preceding=0.5)
_FILL, _CONTINUE = "Fill in the missing audio.", "Continue the music."
_TABLE = (
    Task("T2A", "audio", True, False, "categories", "every category named is heard", clips=1441.3),
    Task("V2A", "audio", False, True, "events", _EVENTS, None, "Generate general audio for the video.", 245.2),
    Task("TV2A", "audio", True, True, "events", _EVENTS, clips=1269.0),
    Task("T2M", "music", True, False, "music", _MUSIC, clips=8077.4),
    Task("V2M", "music", False, True, "music", _MUSIC, None, "Generate music for the video.", 7880.2),
    Task("TV2M", "music", True, True, "music", _MUSIC, clips=7880.2),
    Task("inpainting", "audio", False, False, "hole", _HOLE, "around a hole", _FILL, 398.5, _INPAINTING),
    Task("completion", "music", False, False, "music", _KEPT, "preceding", _CONTINUE, 5882.9, _COMPLETION),
)
TASKS: dict[str, Task] = {task.name: task for task in _TABLE}
assert tuple(TASKS) == get_args(TaskName)


def has_completion_pairs(domain: str) -> bool:
    """Whether clips of a domain serve a task that may be given what precedes them."""
    return any(task.mixture.preceding > 0 for task in tasks_of_domain(domain))


def tasks_of_domain(domain: str) -> list[Task]:
    """The tasks of a domain, in the order of Table A.1."""
    return [task for task in TASKS.values() if task.domain == domain]
