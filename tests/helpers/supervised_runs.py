"""Runs of the small model on two ranks as a launch starts them: started, resumed, watched and compared."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from audiox_trainer.models import strict
from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.core.hardware import free_port
from audiox_trainer.trainer.prepare.prepare_scenes import prepare_scenes
from tests.helpers.small_config import CLIPS, ROOT, small_config, small_distill_config
from tests.helpers.warm_python import python

RANKS = 2
KINDS = ("pretrain", "distill")
STEP, START = 10.0, 120.0  # seconds: `timeouts` of the runs
PATIENCE = 600.0  # seconds, for hangs only, on however slow a machine
SETTINGS = (
    f'timeouts={{"start": {START}, "first_step": {START}, "step": {STEP}, "save": {STEP}}}',
    'checkpoint={"every": 5, "keep_last": 3}',
    "data.verify_hashes=true",
)
# Values that a resumed process cannot have: speeds, and the last gradient norm of a role before its turn.
OF_THE_PROCESS = ("seconds", "samples_per_s", "mfu", "reader_wait", "grad_norm/", "bytes/")
ROLES = ("student", "fake", "discriminator")


class Run:
    """A run's folder and its processes."""

    def __init__(self, kind: str, base: Path, name: str, settings: Sequence[str] = ()) -> None:
        self.kind, self.base, self.folder, self.settings = kind, base, base / name, settings
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, script: Sequence[str] = (), port: int = 0, python: Sequence[str] = (sys.executable,)) -> None:
        """`script` replaces the launch script."""
        command = [*python, *(script or [f"launch/{self.kind}.py"])]
        command += ["--config", str(self.base / f"{self.kind}.json")]
        command += ["--output", str(self.folder), "--resume", "--no-self-test"]
        command += [word for setting in self.settings for word in ("--set", setting)]
        command += ["--teacher", str(self.base / "teacher")] if self.kind == "distill" else []
        common = {
            "PYTHONPATH": str(ROOT),
            "WORLD_SIZE": str(RANKS),
            "LOCAL_WORLD_SIZE": str(RANKS),
            "MASTER_ADDR": "127.0.0.1",
        }
        common |= {"MASTER_PORT": str(port or free_port()), "OMP_NUM_THREADS": "1"}
        self.folder.mkdir(exist_ok=True)
        for rank in range(RANKS):
            file = self.folder / f"said_{rank}.txt"
            file.unlink(missing_ok=True)  # a helper process of a launch that was killed may still write into the former
            with file.open("w") as said:
                environment = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                self.processes.append(
                    subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said, text=True)
                )

    def said(self, rank: int = 0) -> str:
        return (self.folder / f"said_{rank}.txt").read_text()

    def step(self) -> int:
        """The last step in its log."""
        return max([0, *self.losses()])

    def losses(self) -> dict[int, dict[str, Any]]:
        """The losses that each step wrote into metrics.jsonl."""
        file, rows = self.folder / "metrics.jsonl", {}
        for line in file.read_text().splitlines() if file.exists() else ():
            if line.endswith("}"):
                row = json.loads(line)
                rows[row["step"]] = {k: v for k, v in row.items() if not k.startswith(OF_THE_PROCESS)}
        return rows

    def log(self) -> int:
        """The log's file: a run that resumes replaces it by one without the steps that it will make again."""
        file = self.folder / "metrics.jsonl"
        return file.stat().st_ino if file.exists() else 0

    def saving(self) -> bool:
        return any((self.folder / load.FOLDER).glob("*.partial"))

    def ended(self) -> bool:
        return any(p.poll() is not None for p in self.processes)

    def wait(self, seconds: float = PATIENCE, ranks: tuple[int, ...] = tuple(range(RANKS))) -> list[int | None]:
        """Exit codes of these ranks; None for one that is still there after `seconds`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and any(self.processes[r].poll() is None for r in ranks):
            time.sleep(0.02)
        return [self.processes[r].poll() for r in ranks]

    def clear(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes = []

    def resumable(self) -> int:
        """The step that it has to go on from: of its newest undamaged checkpoint."""
        whole = (f for f in load.list_checkpoints(self.folder) if not load.find_fault(f))
        return next((int(load.read_manifest(f)["step"]) for f in whole), 0)

    def end(self) -> dict[str, Any]:
        """Hashes of all that a finished run saved last, and its losses."""
        manifest = load.newest_manifest(self.folder)
        assert manifest is not None
        updates = {name: role["updates"] for name, role in manifest["roles"].items()}
        return {"step": manifest["step"], "updates": updates, "files": manifest["files"], "losses": self.losses()}


def begin(run: Run, script: Sequence[str] = ()) -> dict[str, Any]:
    """Starts a run and waits until it trains: where it should go on, where it does, and after how long."""
    expected, before, then = run.resumable(), run.log(), time.monotonic()
    run.start(script)
    until(run, lambda: run.log() != before and run.step() > expected)
    return {"expected": expected, "resumed": resumed(run.said()), "training_s": round(time.monotonic() - then, 1)}


def until(run: Run, done: Callable[[], bool]) -> None:
    """Waits, but not for a run that has ended."""
    end = time.monotonic() + PATIENCE
    while not done() and not run.ended() and time.monotonic() < end:
        time.sleep(0.001)


def resumed(said: str) -> int | None:
    if "starting at step 0" in said:
        return 0
    place = said.partition("resumed from ")[2].partition(" at step ")[2].split()
    return int(place[0]) if place else None


def prepare(base: Path) -> None:
    """Shards, teacher and configurations."""
    from tests.helpers.random_weights import stirred

    scenes = base / "scenes"
    if not scenes.exists():
        prepare_scenes(scenes, small_config().model, clips=CLIPS, seed=0, music_share=0.5, workers=1)
    pretraining = small_config(
        scenes, *SETTINGS, "zero.stage=2", "training.precision=bf16", "training.steps=120", "logging.every=1"
    )
    stages = [f"{role}.zero.stage=2" for role in ROLES]
    distillation = small_distill_config(scenes, *SETTINGS, *stages, "training.steps=80", "logging.every=1")
    if not (base / "teacher").exists():
        stirred(distillation.model).save_pretrained(base / "teacher")
    for kind, config in (("pretrain", pretraining), ("distill", distillation)):
        (base / f"{kind}.json").write_text(json.dumps(strict.to_dict(config)))


def reference(kind: str, base: Path) -> dict[str, Any]:
    """The end of a run without faults."""
    run = Run(kind, base, f"undisturbed_{kind}")
    run.start(python=python())  # one that is complete resumes, and has nothing to do
    codes = run.wait()
    run.clear()
    assert codes == [0] * RANKS, run.said()
    return run.end()
