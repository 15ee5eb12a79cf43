"""The shipped batch scripts in a real Slurm of two nodes: every way in which a job ends, and how it continues."""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.data.shards import check_shards, read_features
from tests.helpers import supervised_runs
from tests.helpers.random_weights import untrained_judge
from tests.helpers.slurm import Slurm, until, why_not
from tests.helpers.small_config import small_config

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]
PATIENCE = 300.0  # seconds, on however busy a machine


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with Slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Shards, a teacher, pretrain.json (120 steps) and distill.json (80), both with a checkpoint every 5 steps."""
    folder = tmp_path_factory.mktemp("cluster")
    supervised_runs.prepare(folder)
    return folder


class Training:
    """A job of pretrain.sbatch, and the folder of its run."""

    def __init__(self, slurm: Slurm, base: Path, name: str, *arguments: str, options=(), **variables: str) -> None:
        self.run = supervised_runs.Run("pretrain", base, name)
        config = str(base / "pretrain.json")
        self.job = slurm.submit(
            self.run.folder, "pretrain", config, "--no-self-test", *arguments, options=options, **variables
        )

    def reaches(self, step: int) -> None:
        until(lambda: self.run.step() >= step or self.job.ended(), PATIENCE)
        assert self.run.step() >= step, self.job.said()

    def says(self, words: str, times: int = 1) -> None:
        until(lambda: self.job.said().count(words) >= times or self.job.ended(), PATIENCE)
        assert self.job.said().count(words) >= times, self.job.said()

    def checks_end(self, restarts: int, reference: supervised_runs.Run | None = None) -> None:
        """It is done, after so many stays in the queue, with every step made once or as if it had been."""
        state = self.job.wait(PATIENCE)
        assert (state["JobState"], state["Restarts"]) == ("COMPLETED", str(restarts)), self.job.said()
        assert "done; next: python launch/convert.py" in self.job.said()
        steps = list(self.run.losses())
        assert steps == list(range(1, len(steps) + 1)), "every step once, in order"
        if reference:
            assert self.run.end() == reference.end(), "bitwise the same as a run without faults"


def undisturbed(base: Path, name: str, *arguments: str) -> supervised_runs.Run:
    """The same training without Slurm and in one piece."""
    run = supervised_runs.Run("pretrain", base, f"{name}_undisturbed")
    run.start(("launch/pretrain.py", *arguments))
    assert run.wait() == [0, 0], run.said()
    run.clear()
    return run


def test_asked_to_stop_it_saves_comes_back_and_ends(slurm, base):
    """The events at a time limit, with the signal sent at once. The ranks wait for it, as it may take long."""
    settings = ("training.steps=100", "checkpoint.every=1000", f"timeouts.step={PATIENCE}")
    training = Training(slurm, base, "asked", *(word for setting in settings for word in ("--set", setting)))
    training.reaches(3)
    for process in slurm.ranks().values():
        os.kill(process, signal.SIGSTOP)
    slurm.run("scancel", "--batch", "--signal=USR2", training.job.number)
    training.says("asked to stop before the time limit")
    for process in slurm.ranks().values():
        os.kill(process, signal.SIGCONT)
    training.says("stopped as requested, and saved; requeues itself")
    saved = training.run.resumable()
    assert saved == training.run.step() >= 3
    assert f"asked to stop: step {saved} of 100 is saved" in training.job.said()
    training.checks_end(restarts=1)
    assert f"at step {saved}\n" in training.job.said()
    assert "preflight: 2 nodes, 2 ranks" in training.job.said()


def test_a_wrong_configuration_is_not_tried_again(slurm, base):
    training = Training(slurm, base, "wrong", "--set", "optimizer.lr=fast", PREFLIGHT="no")
    state = training.job.wait(PATIENCE)
    assert (state["JobState"], state["Restarts"], state["ExitCode"]) == ("FAILED", "0", "1:0")
    assert re.search(r"0: error: .*optimizer\.lr.*fast", training.job.said()), training.job.said()
    assert "is not requeued" in training.job.said()


@pytest.mark.long
def test_damage_on_one_node_is_not_tried_again(slurm, base, tmp_path):
    """Found before the ranks have met: the other one, which waits for it, is killed, and its code is the higher one."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$RANK" = 0 ] || exit 77\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    training = Training(slurm, base, "damaged", PREFLIGHT="no", PYTHON=str(python), WAIT="3")
    state = training.job.wait(PATIENCE)
    assert (state["JobState"], state["Restarts"], state["ExitCode"]) == ("FAILED", "0", "77:0"), training.job.said()
    assert "data or checkpoints are damaged" in training.job.said() and "rank was lost" not in training.job.said()


@pytest.mark.long
def test_a_time_limit(slurm, base):
    """Slurm's own signal, sent near the limit of a minute; loader processes get it too."""
    settings = ("--set", "training.steps=1000", "--set", "checkpoint.every=400", "--set", "data.workers=1")
    options = ("--time=1", "--signal=B:USR2@30")
    training = Training(slurm, base, "limited", *settings, options=options)
    training.says("asked to stop before the time limit")
    training.says("requeues itself")
    assert training.job.state()["JobState"] in ("PENDING", "COMPLETING")
    slurm.run("scontrol", "update", f"JobId={training.job.number}", "TimeLimit=60")
    training.checks_end(restarts=1, reference=undisturbed(base, "limited", *settings))


@pytest.mark.long
def test_lost_ranks_and_nodes(slurm, base):
    """A rank that is killed or stopped starts again on the same nodes; a node that is gone, also the one that the job
    is run from, brings the job back into the queue."""
    training = Training(slurm, base, "lost", "--set", "training.steps=200", MAX_RETRIES="9")
    for number, how in enumerate((signal.SIGKILL, signal.SIGSTOP), 1):
        training.reaches(12 * number)
        os.kill(slurm.ranks()[1], how)
        training.says("a rank was lost (code", number)
    for restarts, node in enumerate(("n2", "n1")):
        step = training.run.step()
        until(lambda step=step: training.run.step() > step, PATIENCE)
        slurm.lose_node(node)
        until(lambda: training.job.state()["JobState"] != "RUNNING", PATIENCE)
        slurm.start_node(node)
        until(lambda restarts=restarts: training.job.state()["Restarts"] == str(restarts + 1), PATIENCE)
    training.checks_end(restarts=2)
    reference = undisturbed(base, "lost", "--set", "training.steps=200")
    assert training.run.end() == reference.end(), "bitwise the same as a run without faults"


@pytest.mark.long
def test_it_gives_up(slurm, base):
    """A rank that dies before every first checkpoint."""
    training = Training(slurm, base, "hopeless", "--set", "checkpoint.every=1000", MAX_RETRIES="2", PREFLIGHT="no")
    for number in (1, 2):
        until(lambda: 0 in slurm.ranks(), PATIENCE)
        os.kill(slurm.ranks()[0], signal.SIGKILL)
        training.says("a rank was lost (code 137", number)
    state = training.job.wait(PATIENCE)
    assert (state["JobState"], state["Restarts"]) == ("FAILED", "0")
    assert "gives up: 2 starts in a row saved nothing new" in training.job.said()


@pytest.mark.long
def test_a_bad_node_is_named(slurm, base):
    training = Training(slurm, base, "bad", PREFLIGHT="--disk 1e9")
    state = training.job.wait(PATIENCE)
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", "76:0")
    assert "error: n1: " in training.job.said() and "; n2: " in training.job.said()
    assert "sbatch --exclude=NODE" in training.job.said() and not training.run.losses()


@pytest.mark.long
def test_cancelled_it_stays_away(slurm, base):
    training = Training(slurm, base, "cancelled", "--set", "checkpoint.every=1000", "--set", "training.steps=9000")
    training.reaches(3)
    slurm.run("scancel", training.job.number)
    assert training.job.wait(PATIENCE)["JobState"] == "CANCELLED"
    until(lambda: not slurm.ranks(), 30)
    assert training.run.resumable() == training.run.step() and "requeues itself" not in training.job.said()


@pytest.mark.long
def test_pairs_and_distillation(slurm, base, tmp_path):
    output = tmp_path / "turbo"
    arguments = (str(base / "distill.json"), str(base / "teacher"), "--set", "training.steps=10")
    job = slurm.submit(output, "distill", *arguments, PAIRS="16", PREFLIGHT="no")
    assert job.wait(PATIENCE)["JobState"] == "COMPLETED", job.said()
    assert (output / "pairs" / "pairs.json").exists() and load.list_checkpoints(output)
    assert f"done; next: python launch/convert.py {output}" in job.said()


@pytest.mark.long
def test_preparation_on_two_nodes_goes_on_after_a_stop(slurm, base, tmp_path):
    names = [f"{number:03}.wav" for number in range(200)]
    for number, name in enumerate(names):
        soundfile.write(tmp_path / name, 0.5 * np.sin(np.arange(16000) * (1 + number) / 50), 8000)
    lines = [json.dumps({"audio": name, "captions": ["a tone"]}) + "\n" for name in names]
    (tmp_path / "clips.jsonl").write_text("".join(lines))
    arguments = (str(tmp_path / "clips.jsonl"), str(base / "pretrain.json"), str(tmp_path / "shards"), "--workers", "1")
    job = slurm.submit(tmp_path / "notes", "prepare", *arguments, PREFLIGHT="no")
    until(lambda: (tmp_path / "shards" / "work").exists() or job.ended(), PATIENCE)
    slurm.run("scancel", "--batch", "--signal=USR2", job.number)
    state = job.wait(PATIENCE)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), job.said()
    check_shards(tmp_path / "shards" / "audio", hashes=True)
    assert read_features(tmp_path / "shards" / "audio").samples == len(names)
    assert f"done: {tmp_path / 'shards'}" in job.said()


@pytest.mark.long
def test_generation_on_two_nodes_goes_on_after_a_stop(slurm, base, tmp_path):
    lines = [json.dumps({"text": "a bell", "seed": number}) + "\n" for number in range(40)]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    arguments = (str(base / "teacher"), str(tmp_path / "prompts.jsonl"), str(tmp_path / "sounds"), "--batch", "1")
    job = slurm.submit(tmp_path / "notes", "generate", *arguments, PREFLIGHT="no")
    until(lambda: bool(list(tmp_path.glob("sounds/*.wav"))) or job.ended(), PATIENCE)
    slurm.run("scancel", "--batch", "--signal=USR2", job.number)
    state = job.wait(PATIENCE)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), job.said()
    assert len(list(tmp_path.glob("sounds/*.wav"))) == 40 and "all 40 are there" in job.said()
    assert len((tmp_path / "sounds/manifest.jsonl").read_text().splitlines()) == 40
    assert f"done: {tmp_path / 'sounds'}" in job.said()


@pytest.mark.long
def test_evaluation_goes_on_after_what_it_has_judged(slurm, base, tmp_path):
    shutil.copytree(base / "teacher", tmp_path / "second")
    untrained_judge(tmp_path / "judge", small_config().model.codec)
    arguments = (str(tmp_path / "report"), "--weights", str(base / "teacher"), str(tmp_path / "second"))
    arguments += ("--judge", str(tmp_path / "judge"), "--prompts", "8", "--tasks", "8", "--no-latency")
    job = slurm.submit(tmp_path / "report", "evaluate", *arguments, nodes=1, PREFLIGHT="no")
    until(lambda: bool(list(tmp_path.glob("report/evaluation_cache/*.json"))) or job.ended(), PATIENCE)
    slurm.run("scancel", "--batch", "--signal=USR2", job.number)
    state = job.wait(PATIENCE)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), job.said()
    first, second = job.said().split("stopped before the time limit")
    assert "teacher: " in first and "teacher: " not in second and "second: " in second
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [row["model"] for row in report["results"]] == ["teacher", "second"]
    assert not (tmp_path / "report" / "evaluation_cache").exists()
