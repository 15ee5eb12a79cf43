"""The commands that documents and sources show, found by running their shell with programs that only record calls."""

import ast
import os
import re
import shlex
import subprocess
import textwrap
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.helpers.small_config import ROOT

DOCUMENTS = (
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / ".github").rglob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
)
SCRIPTS = sorted((ROOT / "launch").glob("*.py"))
BATCH = sorted((ROOT / "launch/slurm").glob("*.sbatch"))
SOURCES = [
    path for folder in ("launch", "trainer", "models", "kernels") for path in sorted((ROOT / folder).rglob("*.py"))
]
PROGRAMS = "python python3 deepspeed torchrun srun sbatch scancel make bash hf pytest sleep source git pip".split()
VARIABLES = "PAIRS OUTPUT PREFLIGHT".split()
COMMAND = re.compile(rf"((?:[A-Z_]+=\S+ )*(?:{'|'.join(PROGRAMS)}) .*\S)")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Command:
    """One program's call. A `partial` one leaves its arguments out, or some of them by an ellipsis."""

    where: str
    program: str
    arguments: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def partial(self) -> bool:
        return any(word in ("…", "...") for word in self.arguments) or (self.script or ("", [""]))[1] == []

    @property
    def script(self) -> tuple[str, list[str]] | None:
        """Name of the script in launch/ that it runs, and that script's arguments; None for other programs."""
        for i, word in enumerate(self.arguments):
            if found := re.fullmatch(r"launch/(\w+)\.py", word):
                return found[1], [w for w in self.arguments[i + 1 :] if w not in ("…", "...")]
        return None

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join((self.program, *self.arguments))}"


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *languages: str) -> list[str]:
    """The fenced blocks of a document in one of these languages."""
    found = FENCE.findall(path.read_text())
    return [textwrap.dedent(body) for _, language, body in found if language in languages]


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return FENCE.sub("", path.read_text())


def spans(text: str) -> list[str]:
    """The texts between backticks, on one line each."""
    return [" ".join(span.split()) for span in SPAN.findall(text)]


def strings(path: Path) -> list[str]:
    """Docstrings and other whole strings of a source."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


@cache
def commands() -> tuple[Command, ...]:
    """All commands that are shown anywhere."""
    found: list[Command] = []
    for path in DOCUMENTS:
        for block in blocks(path, "bash", "sh"):
            found += _run(block, name_of(path))
        shown = [span for span in spans(prose(path)) if COMMAND.fullmatch(span)]
        found += [command for span in shown for command in _run(span, name_of(path))]
    for path in SOURCES:
        for text in strings(path):
            lines = [line.strip() for line in re.sub(r"\\\n\s*", "", text).splitlines()]
            shown = [line for line in (*lines, *spans(text)) if COMMAND.fullmatch(line) and "launch/" in line]
            found += [command for line in shown for command in _run(line, name_of(path))]
    for path in BATCH:
        comments = [line for line in path.read_text().splitlines() if line.startswith("# ")]
        found += [
            c for line in comments for text in re.findall(r": (sbatch .*)", line) for c in _run(text, name_of(path))
        ]
    return tuple(dict.fromkeys(found + [step for command in found for step in _steps(command)]))


def _run(shell: str, where: str) -> list[Command]:
    """Run a piece of shell in which every program only records what it was called with."""
    variables = " ".join(f'"${{{name}:-}}"' for name in VARIABLES)
    call = f"printf '\\x1e'; printf '\\x1f%s' \"${{FUNCNAME[0]}}\" {variables} \"$@\""
    record = "\n".join(f"{name}() {{ {call}; }}" for name in PROGRAMS)
    done = subprocess.run(
        ["/bin/bash", "-euc", f"{record}\n{shell}"],
        capture_output=True, text=True, timeout=600, cwd="/", env={"PATH": "/nonexistent"},
    )  # fmt: skip
    assert done.returncode == 0, f"{where}: {shell}\n{done.stderr}"
    found = []
    for call in done.stdout.split("\x1e")[1:]:
        program, *words = call.split("\x1f")[1:]
        settings = {name: value for name, value in zip(VARIABLES, words, strict=False) if value}
        found.append(Command(where, program, tuple(words[len(VARIABLES) :]), settings))
    return found


def batch_script(command: Command) -> tuple[list[str], Path, list[str]]:
    """sbatch's options, the script and its arguments."""
    at = next((i for i, word in enumerate(command.arguments) if word.endswith(".sbatch")), None)
    assert at is not None, f"{command}: names no batch script"
    arguments = command.arguments
    return list(arguments[:at]), ROOT / arguments[at], list(arguments[at + 1 :])


def _steps(command: Command) -> list[Command]:
    """The commands that a batch job starts on its ranks, by its own script with a job.sh that only records."""
    if command.program != "sbatch" or command.partial:
        return []
    _, script, arguments = batch_script(command)
    shell = script.read_text().replace('. "$SLURM_SUBMIT_DIR/launch/slurm/job.sh"', "true")
    record = 'work() { printf "\\x1e"; printf "\\x1f%s" "$@"; }\nsay() { :; }\n'
    environment = os.environ | {"SLURM_SUBMIT_DIR": "/"} | command.variables
    done = subprocess.run(
        ["/bin/bash", "-euc", record + shell, script.name, *arguments],
        capture_output=True, text=True, timeout=600, cwd="/", env=environment,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return [
        Command(f"{command.where}, by {script.name}", "srun", tuple(w for w in call.split("\x1f")[1:]))
        for call in done.stdout.split("\x1e")[1:]
    ]


def sbatch_ranks(command: Command) -> int:
    """Nodes times tasks; sbatch's own options come before what the script asks for."""
    options, script, _ = batch_script(command)
    asked: dict[str, str] = {}
    for text in (script.read_text(), " ".join(options)):
        asked |= dict(re.findall(r"--(nodes|ntasks-per-node)=(\d+)", text))
    return int(asked["nodes"]) * int(asked["ntasks-per-node"])
