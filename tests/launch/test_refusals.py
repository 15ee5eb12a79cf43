"""Launches that are refused: one line, no process group, nothing written; how an error ends."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from audiox_trainer.trainer.core.cli import ExitCode, exit_code_of, run
from audiox_trainer.trainer.training.run_folder import write_config
from tests.helpers.small_config import ROOT, small_config, small_json
from tests.helpers.warm_python import python

# Every case in one process: a refusal comes before anything that lasts, and imports take seconds.
RUNNER = """
import contextlib, io, json, os, runpy, sys
for case in json.load(sys.stdin):
    sys.argv = [case["script"], *case["arguments"]]
    os.environ["WORLD_SIZE"] = case["ranks"]
    out, error, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as left:
            code = left.code
        except BaseException as raised:
            code = repr(raised)
    group = "torch" in sys.modules and sys.modules["torch"].distributed.is_initialized()
    print(json.dumps({"code": code, "out": out.getvalue(), "error": error.getvalue(), "group": group}))
"""


def truncate(folder):
    os.truncate(folder / "audio" / "shard.00000.mds", 3000)


def empty(folder):
    for file in (folder / "music").iterdir():
        file.unlink()


def lose(folder):
    (folder / "music" / "shard.00000.mds").unlink()


def respell(data: Path) -> None:
    """Another index, though of the same shards."""
    index = data / "audio" / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()), indent=3))


@dataclass(frozen=True)
class Refusal:
    """A launch that must end in one line: what is wrong with it, and what the line says."""

    message: str
    overrides: tuple[str, ...] = ()  # of the configuration
    resume: bool = False
    ranks: int = 1
    damage: Callable[[Path], None] | None = None
    running: bool = False  # whether the output folder holds a run of the small configuration
    code: int = 1
    late: Callable[[Path], None] | None = None  # what happens to the data after that run


LAUNCHES = {
    "unknown key": Refusal(r"run\.json: colour: unknown key", ("colour=1",)),
    "ill-typed": Refusal(r"run\.json: zero\.stage: 9 must be at most 3", ("zero.stage=9",)),
    "nowhere": Refusal(r"--set training\.steps\.x=1: 'x' leads nowhere", ("training.steps.x=1",)),
    "three ranks": Refusal(r"8 is not a multiple of 3 ranks x micro_batch 4 = 12", ranks=3),
    "no shards": Refusal(r"nowhere is not a folder of shards", ("data.streams.0.path=nowhere",)),
    "empty folder": Refusal(r"music.features\.json is missing: the folder is empty", damage=empty),
    "truncated shard": Refusal(r"shard\.00000\.mds has 3000 bytes, its index says \d+", damage=truncate, code=77),
    "missing shard": Refusal(r"music.shard\.00000\.mds is missing", damage=lose, code=77),
    "other codec": Refusal(
        r"made with codec\.sample_rate 8000, the model needs 16000", ("model.codec.sample_rate=16000",)
    ),
    "too few": Refusal(r"74 samples are fewer than training\.global_batch 80", ("training.global_batch=80",)),
    "holds a run": Refusal(r"out holds a run already: give --resume to continue it", running=True),
    "other model": Refusal(
        r"model\.backbone\.depth: the run in .*out has 2, this configuration 3",
        ("model.backbone.depth=3",),
        resume=True,
        running=True,
    ),
    "other seed": Refusal(
        r"training\.seed: the run in .*out has 0, this configuration 5", ("training.seed=5",), True, running=True
    ),
    "other batch": Refusal(
        r"training\.global_batch: the run in .*out has 8, this configuration 16",
        ("training.global_batch=16",),
        resume=True,
        running=True,
    ),
    "other mixture": Refusal(
        r"data\.streams\.0\.tasks\.T2A: the run in .*out has 0\.426, this configuration 0\.9; ",
        ("data.streams.0.tasks.T2A=0.9",),
        resume=True,
        running=True,
    ),
    "other shards": Refusal(
        r"audio: its shards are not those that the run in .*out was trained on.*data\.accept_changed_data=true",
        resume=True,
        running=True,
        late=respell,
    ),
    "credential": Refusal(
        r"run\.json: data\.streams\.0\.path: holds a credential", ("data.streams.0.path=s3://me:hush@host/audio",)
    ),
}


@pytest.fixture(scope="module")
def launches(scenes, tmp_path_factory):
    """The output and the files of each launch: name -> (its answer, files before, files after)."""
    cases, folders, before = [], [], []
    for case in LAUNCHES.values():
        folder = tmp_path_factory.mktemp("launch")
        data = scenes
        if case.damage or case.late:
            data = shutil.copytree(scenes, folder / "data")
        if case.damage:
            case.damage(data)
        (folder / "run.json").write_text(json.dumps(small_json(data)))
        if case.running:
            write_config(folder / "out", small_config(data))
        if case.late:
            case.late(data)
        arguments = ["--config", str(folder / "run.json"), "--output", str(folder / "out")]
        arguments += [part for override in case.overrides for part in ("--set", override)]
        arguments += ["--resume"] * case.resume
        script = str(ROOT / "launch" / "pretrain.py")
        cases.append({"script": script, "arguments": arguments, "ranks": str(case.ranks)})
        folders.append(folder)
        before.append(sorted(folder.rglob("*")))
    command = [*python(), "-c", RUNNER]
    done = subprocess.run(command, input=json.dumps(cases), cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    after = [sorted(folder.rglob("*")) for folder in folders]
    return dict(zip(LAUNCHES, zip(answers, before, after, strict=True), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHES)
def test_a_launch_is_refused_in_one_line(launches, name):
    answer, before, after = launches[name]
    lines = [line for line in answer["error"].splitlines() if line.startswith("error: ")]
    assert (answer["code"], len(lines)) == (LAUNCHES[name].code, 1), answer
    assert re.search(LAUNCHES[name].message, lines[0]), lines[0]
    assert "Traceback" not in answer["error"] + answer["out"]
    assert not answer["group"], "no process group is made"
    assert after == before, "nothing may be written"


@pytest.mark.slow
def test_a_launch_as_a_user_does_it(scenes, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(small_json(scenes)))
    arguments = ["--config", str(tmp_path / "run.json"), "--output", str(tmp_path / "out"), "--set", "optimizer.lr=0"]
    command = [sys.executable, "launch/pretrain.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {tmp_path}/run.json: optimizer.lr: 0 must be above 0\n"
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_named_without_an_error_number(capsys):
    assert run(lambda: print(open("nowhere.json"))) == 1
    assert capsys.readouterr().err == "error: nowhere.json: no such file or directory\n"


def test_no_traceback_shows_a_credential(capsys, monkeypatch):
    """An error that nobody foresaw, of a library that was given an address with a key in it."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "k3ystr0ke+and/more")

    def act():
        raise RuntimeError("403 for s3://me:hush@host/a?X-Amz-Signature=abcdef, k3ystr0ke+and/more")

    assert run(act) == 1
    said = capsys.readouterr().err
    assert (
        "Traceback" in said and "in act" in said and "RuntimeError: 403 for s3://[redacted]@host/a?[redacted]" in said
    )
    assert not any(secret in said for secret in ("hush", "abcdef", "k3ystr0ke"))


def test_what_a_gpu_or_its_network_does_may_go_well_another_time():
    """Too little memory does not."""
    for error in (torch.AcceleratorError("CUDA error: uncorrectable ECC"), torch.distributed.DistBackendError("NCCL")):
        assert exit_code_of(error) is ExitCode.HUNG
    assert exit_code_of(torch.OutOfMemoryError("CUDA out of memory")) is ExitCode.FAILED
