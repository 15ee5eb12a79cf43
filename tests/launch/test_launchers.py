"""Without Slurm: DeepSpeed's launcher over ssh to two nodes, and torchrun with an agent on each of two nodes. Both make
bitwise the run of two ranks that are started by hand."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from audiox_trainer.trainer.core.cli import ExitCode
from audiox_trainer.trainer.core.hardware import free_port
from tests.helpers import supervised_runs
from tests.helpers.slurm import ALONE, until
from tests.helpers.small_config import ROOT
from tests.helpers.ssh import Hosts, why_not

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.skipif(bool(why_not()), reason=why_not())]
SETTINGS = ("--set", "training.steps=30")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launchers")
    supervised_runs.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def expected(base):
    run = supervised_runs.Run("pretrain", base, "by_hand")
    run.start(("launch/pretrain.py", *SETTINGS))
    assert run.wait() == [0, 0], run.said()
    run.clear()
    return run.end()


def test_deepspeed_over_ssh(base, expected, tmp_path):
    run = supervised_runs.Run("pretrain", base, "ssh")
    training = ("launch/pretrain.py", "--config", str(base / "pretrain.json"), "--output", str(run.folder), *SETTINGS)
    with Hosts(tmp_path) as hosts:
        done = hosts.deepspeed(*training)
        assert done.returncode == 0, done.stdout + done.stderr
        assert all(f"{address}: " in done.stdout + done.stderr for address in ("127.0.0.1", "127.0.0.2"))
        assert run.end() == expected
        wrong = hosts.deepspeed(*training, "--resume", "--set", "training.seed=5")
        assert wrong.returncode == ExitCode.FAILED and "error: training.seed: the run in" in wrong.stderr + wrong.stdout


def test_torchrun_with_two_agents(base, expected):
    run = supervised_runs.Run("pretrain", base, "torchrun")
    command = [*ALONE, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "launch/pretrain.py"]
    command += ["--config", str(base / "pretrain.json"), "--output", str(run.folder), *SETTINGS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    agents = [subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [agent.communicate(timeout=600)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert run.end() == expected


def test_torchrun_passes_a_request_to_stop_on(base, expected):
    """SIGTERM to torchrun reaches the ranks, which save; its own code says only that it was ended."""
    run = supervised_runs.Run("pretrain", base, "stopped")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    command += ["launch/pretrain.py", "--config", str(base / "pretrain.json"), "--output", str(run.folder), *SETTINGS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    agent = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    until(lambda: run.step() >= 3 or agent.poll() is not None, 300)
    agent.send_signal(signal.SIGTERM)
    _, said = agent.communicate(timeout=600)
    saved = run.resumable()
    assert saved == run.step() >= 3 and f"asked to stop: step {saved} of 30 is saved" in said, said
    again = subprocess.run(
        [*command, "--resume"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert again.returncode == 0 and run.end() == expected, again.stderr


def test_torchrun_starts_lost_ranks_again_in_place(base, expected):
    run = supervised_runs.Run("pretrain", base, "in_place")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "3"]
    command += ["--master-port", str(free_port()), "launch/pretrain.py", "--config", str(base / "pretrain.json")]
    command += ["--output", str(run.folder), *SETTINGS, "--resume", "--no-self-test"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    agent = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    until(lambda: run.step() >= 7 or agent.poll() is not None, 300)
    ranks = [child for child in psutil.Process(agent.pid).children() if "launch/pretrain.py" in child.cmdline()]
    assert len(ranks) == 2
    ranks[1].kill()
    said, _ = agent.communicate(timeout=600)
    assert agent.returncode == 0 and "resumed from" in said and run.end() == expected, said
