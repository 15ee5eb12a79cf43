"""The eight tasks (section IV-B, Table A.1): the one table that data, prompts, evaluation and reports read."""

from dataclasses import dataclass
from typing import Literal, get_args

TaskName = Literal["T2A", "V2A", "TV2A", "T2M", "V2M", "TV2M", "inpainting", "completion"]
Domain = Literal["audio", "music"]
DOMAINS: tuple[Domain, ...] = get_args(Domain)


@dataclass(frozen=True)
class Task:
    """The conditions of a task, and the text that replaces one it does not have.

    `hours` is the task's training audio in Table A.1, which is its share of a full-size run.
    """

    name: TaskName
    domain: Domain
    text: bool  # has a text of its own
    video: bool
    audio: Literal[None, "around a hole", "preceding"] = None  # which part of the sound is given
    default_text: str | None = None  # section IV-B: a task without a text gets a natural-language description
    hours: float = 0.0


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("T2A", "audio", text=True, video=False, hours=1441.3),
        Task("V2A", "audio", text=False, video=True, default_text="Generate general audio for the video.", hours=245.2),
        Task("TV2A", "audio", text=True, video=True, hours=1269.0),
        Task("T2M", "music", text=True, video=False, hours=8077.4),
        Task("V2M", "music", text=False, video=True, default_text="Generate music for the video.", hours=7880.2),
        Task("TV2M", "music", text=True, video=True, hours=7880.2),
        Task("inpainting", "audio", False, False, "around a hole", "Fill in the missing audio.", hours=398.5),
        Task("completion", "music", False, False, "preceding", "Continue the music.", hours=5882.9),
    )
}
assert tuple(TASKS) == get_args(TaskName)


def tasks_of_domain(domain: str) -> list[Task]:
    """The tasks of a domain, in the order of Table A.1."""
    return [task for task in TASKS.values() if task.domain == domain]
