"""Kill, damage and resume runs at random points, and compare their ends bitwise with undisturbed ones.

    python tests/resilience/soak.py --kills 60 --seed 0 --log soak.jsonl

Runs of launch/pretrain.py and launch/distill.py alternate, one of each that waits for its saves, then one of each that
saves in the background. Each is killed several times in start-up, in a step or in a save: all ranks at once, or one
rank, whose loss the others have to notice; killed, stopped, or in a native call that never returns. Then something that
it left is damaged, and the run resumes. At its end every byte of its last checkpoint (weights, moments, moving average,
random states of every rank) and every step's losses must be those of an undisturbed run. Every kill and every
comparison is a line of the log. A soak with the same log and seed continues after the last complete run, and refuses
the log of another.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from audiox_trainer.trainer.checkpoint import load  # noqa: E402
from audiox_trainer.trainer.core.cli import ExitCode  # noqa: E402
from audiox_trainer.trainer.core.files import write_text  # noqa: E402
from tests.helpers.soaked_rank import HANG  # noqa: E402
from tests.helpers.supervised_runs import KINDS, RANKS, Run, begin, prepare, reference, until  # noqa: E402


@dataclass(frozen=True)
class Kill:
    """One disturbance of a run."""

    where: str  # start, step, save
    at: float  # the share of the steps that are left, or seconds after the start
    who: str  # all, one
    rank: int
    how: str  # kill, stop, hang in a native call
    damage: str


SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "hang": HANG}


def draw(seed: int, number: int) -> Kill:
    rng = np.random.default_rng([seed, number])
    where = str(rng.choice(["start", "step", "save"], p=[0.1, 0.5, 0.4]))
    # In start-up the others wait for a lost rank as long as start-up may take, so there all ranks are killed.
    who = "all" if where == "start" else str(rng.choice(["all", "one"]))
    how = "kill" if who == "all" else str(rng.choice(list(SIGNALS)))
    return Kill(where, float(rng.random()), who, int(rng.integers(RANKS)), how, str(rng.choice(list(DAMAGE))))


def flip(file: Path, rng: np.random.Generator) -> None:
    data = bytearray(file.read_bytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    file.write_bytes(data)


def one_file(folder: Path, rng: np.random.Generator) -> Path:
    return Path(str(rng.choice(sorted(map(str, folder.glob("*/rank_*.safetensors"))))))


def halve(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


# Damage to the newest of several checkpoints, or to the file that names the newest.
DAMAGE: dict[str, Callable[[Path, np.random.Generator], None]] = {
    "nothing": lambda folder, rng: None,
    "byte flipped": lambda folder, rng: flip(one_file(folder, rng), rng),
    "file truncated": lambda folder, rng: halve(one_file(folder, rng)),
    "file deleted": lambda folder, rng: one_file(folder, rng).unlink(),
    "manifest deleted": lambda folder, rng: (folder / "manifest.json").unlink(),
    "manifest emptied": lambda folder, rng: os.truncate(folder / "manifest.json", 0),
    "latest.json deleted": lambda folder, rng: (folder.parents[1] / load.LATEST).unlink(missing_ok=True),
    "latest.json wrong": lambda folder, rng: (folder.parents[1] / load.LATEST).write_text('{"step": 99999}'),
    "shard": lambda folder, rng: None,  # see `refused`
}


def disturb(run: Run, kill: Kill, total: int) -> dict[str, Any]:
    """Starts the run, kills it at its point, and returns the outcome."""
    script = ("-m", "tests.helpers.soaked_rank", run.kind, "[]")
    if kill.where == "start":
        run.start(script)
        time.sleep(6 * kill.at)
        found: dict[str, Any] = {}
    else:
        found = begin(run, script)
        first = run.step()
        goal = first + int(kill.at * (total - first) / 2)
        until(run, lambda: run.step() >= goal)
        if kill.where == "save":
            until(run, run.saving)
            time.sleep(kill.at * 0.01)
    found |= {"step": run.step(), "too_late": run.ended()}
    if found["too_late"]:
        found["said"] = [run.said(rank)[-500:] for rank in range(RANKS)]
    victims = run.processes if kill.who == "all" else [run.processes[kill.rank]]
    for process in victims:
        process.send_signal(SIGNALS[kill.how])
    others = tuple(r for r in range(RANKS) if run.processes[r] not in victims)
    if others and not found["too_late"]:
        then = time.monotonic()
        found["codes"] = run.wait(ranks=others)
        found["noticed_s"] = round(time.monotonic() - then, 1)
        found["said"] = [line for r in others for line in run.said(r).splitlines() if "error:" in line][-1:]
        found["hang"] = None in found["codes"]
    run.clear()
    return found


def refused(run: Run, rng: np.random.Generator) -> dict[str, Any]:
    """Whether a run does not start on a shard with one byte flipped, and says which; if not, what it does. The shard is
    mended again."""
    shard = Path(str(rng.choice(sorted(map(str, run.base.glob("scenes/*/*.mds"))))))
    before = shard.read_bytes()
    flip(shard, rng)
    run.start()
    codes = run.wait()
    said = [run.said(rank) for rank in range(RANKS)]
    run.clear()
    shard.write_bytes(before)
    found = codes == [ExitCode.CORRUPT] * RANKS and f"{shard} has changed" in said[0]
    return {"found": found} if found else {"found": found, "instead": [codes, *(text[-1000:] for text in said)]}


def soak_one(
    kind: str, base: Path, seed: int, numbers: range, reference: dict[str, Any], async_save: bool
) -> list[dict[str, Any]]:
    """A run with these kills: a line for each, and one for its end."""
    settings = ("checkpoint.async_save=true",) if async_save else ()
    run, lines = Run(kind, base, f"run_{numbers.start}", settings), []
    shutil.rmtree(run.folder, ignore_errors=True)
    for number in numbers:
        kill, rng = draw(seed, number), np.random.default_rng([seed, number, 1])
        line = {"kill": number, "kind": kind, "async_save": async_save, **asdict(kill)}
        line |= disturb(run, kill, reference["step"])
        folders = load.list_checkpoints(run.folder)
        if kill.damage == "shard":
            line |= refused(run, rng)
        elif len(folders) > 1:
            DAMAGE[kill.damage](folders[0], rng)
        else:
            line["damage"] = "nothing"
        lines.append(line)
    start = begin(run)
    codes = run.wait()
    run.clear()
    end = run.end() if codes == [0] * RANKS else {}
    differing = [key for key in reference if end.get(key) != reference[key]]
    said = [] if end else [run.said(rank)[-2000:] for rank in range(RANKS)]
    lines.append({"run": numbers.start, "kind": kind, **start, "codes": codes, "differing": differing, "said": said})
    if not differing:
        shutil.rmtree(run.folder)
    return lines


def sound(line: dict[str, Any]) -> bool:
    """Whether a line of the log is as expected."""
    right = line.get("resumed") == line.get("expected") and line.get("found", True)
    if "run" in line:
        return bool(right and line["codes"] == [0] * RANKS and not line["differing"])
    return bool(right and all(code == ExitCode.HUNG for code in line.get("codes", ())))


def begun(log: Path, seed: int, per_run: int) -> list[dict[str, Any]]:
    """The lines of a log that a soak resumes from: those of its whole runs. Half of one, which a kill of the soak left,
    goes.

    Raises ValueError where the log is of another seed or other runs.
    """
    if not log.exists():
        return []
    text = log.read_text()
    whole = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]
    ends = [i for i, line in enumerate(whole) if "run" in line]
    lines = whole[: ends[-1] + 1] if ends else []
    for line in lines:
        for name, value in (("seed", seed), ("per_run", per_run)):
            if line.get(name, value) != value:  # absent from earlier logs
                raise ValueError(
                    f"{log} is of --{name.replace('_', '-')} {line[name]}, not {value}: give another --log"
                )
    if (kept := "".join(json.dumps(line) + "\n" for line in lines)) != text:
        write_text(log, kept)
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--per-run", type=int, default=2, help="kills of one run before it may end")
    parser.add_argument("--only", choices=KINDS, help="one of the two trainings (default: in turn)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="one JSON object a line; a soak resumes from it")
    parser.add_argument("--folder", type=Path, help="where it works (default: a temporary folder)")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    log = options.log or folder / "soak.jsonl"
    lines = begun(log, options.seed, options.per_run)
    prepare(folder)
    kinds = (options.only,) if options.only else KINDS
    references = {kind: reference(kind, folder) for kind in kinds}
    for first in range(sum("kill" in line for line in lines), options.kills, options.per_run):
        number = first // options.per_run
        kind, async_save = kinds[number % len(kinds)], bool(number // len(kinds) % 2)
        numbers = range(first, min(first + options.per_run, options.kills))
        of = {"seed": options.seed, "per_run": options.per_run}
        found = [line | of for line in soak_one(kind, folder, options.seed, numbers, references[kind], async_save)]
        lines += found
        with log.open("a") as file:  # all lines of a run at once: an interrupted run is repeated
            file.write("".join(json.dumps(line) + "\n" for line in found))
        for line in found:
            print(json.dumps(line), flush=True)
    kills, runs = [line for line in lines if "kill" in line], [line for line in lines if "run" in line]
    bad, hangs = [line for line in lines if not sound(line)], sum(line.get("hang", False) for line in kills)
    late = sum(line.get("too_late", False) for line in kills)
    print(f"{len(kills)} kills in {len(runs)} runs, {hangs} hangs, {len(bad)} lines that are not as they have to be")
    print(f"{late} kills came when the run had ended already, and say nothing")
    for what, name in (("noticed", "noticed_s"), ("training again", "training_s")):
        if seconds := sorted(line[name] for line in lines if name in line):
            print(f"{what} after {seconds[len(seconds) // 2]:.1f} s, at most {seconds[-1]:.1f}")
    if not options.folder and not bad:
        shutil.rmtree(folder)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
