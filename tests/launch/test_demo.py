"""The demo's whole chain with budgets of seconds: the commands that a user types, one after the other."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from audiox_trainer.launch.demo_steps import StepRunner
from audiox_trainer.trainer.core.config import load_pretrain_config
from tests.helpers.random_weights import untrained_judge
from tests.helpers.warm_python import python_for_children

SMALL = ("training.compile=false", "training.cpu_threads=1")
STUDENT = (*SMALL, "warm_start.ode_steps=2")
TEACHER = (
    "sampling.steps=2",
    "model.backbone.width=64",
    "model.backbone.heads=1",
    "model.backbone.depth=2",
    "model.backbone.mlp_hidden=64",
)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # for hangs alone
@pytest.mark.parametrize("students", [1, pytest.param(2, marks=pytest.mark.long)])
def test_the_whole_chain_makes_a_report(tmp_path: Path, root: Path, students: int) -> None:
    out = tmp_path / "demo"
    untrained_judge(out / "judge", load_pretrain_config(root / "configs/tiny.json").model.codec)
    start = [sys.executable] if students > 1 else python_for_children(tmp_path)  # as a user does it, or faster
    command = [*start, "launch/demo.py", "--out", str(out), "--minutes", "0.02", "--calibration", "4"]
    command += ["--clips", "160", "--prompts", "1", "--tasks", "4", "--student-minutes", "0.01"]
    command += ["--picture", str(out / "spectrograms.png"), "--students", str(students)]
    command += ["--first", "3", "--student", "configs/distill_tiny.json"] if students > 1 else []  # which has pairs
    command += [word for setting in (*SMALL, *TEACHER) for word in ("--set", setting)]
    command += [word for setting in STUDENT for word in ("--set-student", setting)]
    _goes_through(command, root, tmp_path / "said")

    report = json.loads((out / "report.json").read_text())
    assert {"host", "data", "judge", "chance", "teacher", "student", "efficiency"} <= report.keys()
    assert report["chance"].keys() >= {"cat_acc", "cnt_acc", "ord_acc", "ts_acc"}
    tasks = {"T2A", "V2A", "TV2A", "T2M", "V2M", "TV2M", "inpainting", "completion"}
    own, names = (2 if students == 1 else 3), ["student", "student-1"][:students]
    ways_of = {"teacher": [(own, 2 * own), (4, 8), (4, 8), (4, 4)]} | {name: [(4, 4)] for name in names}
    for name, ways in ways_of.items():
        model = report[name]
        assert model["steps"] >= 4 and model["minutes"] > 0 and model["samples_per_s"] > 0
        assert [(row["steps"], row["nfe"]) for row in model["results"]] == ways
        assert {row["task"] for row in model["tasks"]} == tasks and model["results"][0]["prompts"] == 4
    timed = [(row["model"], row["steps"], row["nfe"]) for row in report["efficiency"]]
    assert timed == [*(("teacher", n, 2 * n) for n in (own, 4, 50, 100, 200)), *((name, 4, 4) for name in names)]
    faster = {row["nfe"]: row["transformer"] for row in report["efficiency"][-1]["against"]}
    assert list(faster) == [2 * own, 8, 100, 200, 400] and faster[400] > faster[100] > 5
    assert report["efficiency"][0]["rtf"] > 0
    assert {"dm", "fake", "discriminator", "adversarial"} <= report["student"].keys()
    with Image.open(out / "spectrograms.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000
    page = (out / "report.html").read_text()
    assert page.count("<audio") == 4 * (5 + students)  # a prompt a type: the true scene, the teacher in four ways
    assert all(page.count(f"<figcaption>{name}</figcaption>") == 4 for name in ways_of)
    assert not re.findall("https?://[^ ]*", page.split("</style>")[1]), "it needs no network"

    assert _goes_through(command, root, tmp_path / "said").count("skipped") >= 3


def test_commands_are_found_beside_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody has activated the environment."""
    monkeypatch.setenv("PATH", "/usr/bin")
    found = shutil.which("deepspeed", path=StepRunner(tmp_path).environment["PATH"])
    assert found == str(Path(sys.executable).with_name("deepspeed"))


def _goes_through(command: list[str], root: Path, said: Path) -> str:
    """The command's output. It ends by itself, whatever its processes left behind may still hold open."""
    with said.open("w") as file:
        demo = subprocess.Popen(command, cwd=root, stdout=file, stderr=file, process_group=0)
        try:
            code: int | None = demo.wait(timeout=1700)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(demo.pid, signal.SIGKILL)
            demo.wait()
    assert code == 0, said.read_text()[-3000:]
    return said.read_text()


@pytest.mark.long
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c(tmp_path: Path, root: Path) -> None:
    """A sentence and the code of a shell, no traceback; the same command continues where it was, in the short run
    too."""
    out, said = tmp_path / "demo", tmp_path / "said"
    command = [sys.executable, "launch/demo.py", "--out", str(out), "--minutes", "0.01", "--calibration", "60"]
    command += ["--clips", "160", "--student-minutes", "0", *(w for s in (*SMALL, *TEACHER) for w in ("--set", s))]

    def interrupted(when: str) -> int:
        with said.open("w") as file:
            demo = subprocess.Popen(command, cwd=root, stdout=file, stderr=file, process_group=0)
            while demo.poll() is None and not list(out.glob(when)):
                time.sleep(0.1)
            os.killpg(demo.pid, signal.SIGINT)  # as a terminal does
            return demo.wait(timeout=600)

    assert interrupted("calibration/checkpoints/step_*/manifest.json") == 128 + signal.SIGINT
    assert "interrupted" in said.read_text() and "demo.py" not in said.read_text().split("calibrate")[1]
    assert interrupted("teacher/config.json") == 128 + signal.SIGINT
    assert "resumed from" in said.read_text(), said.read_text()[-3000:]
