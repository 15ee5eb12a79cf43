"""A preparation finds its rank, its device and its cores, and refuses a wrong start."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from audiox_trainer.launch import prepare
from audiox_trainer.trainer.core.hardware import free_port
from audiox_trainer.trainer.data.storage import open_store, scratch_folder
from audiox_trainer.trainer.prepare import prepare_files as module
from audiox_trainer.trainer.prepare.prepare_files import PrepareRank
from tests.helpers.preparation import contents, manifest, sound

KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
SLURM = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_STEP_TASKS_PER_NODE")


@pytest.fixture
def given(monkeypatch):
    """Sets exactly these variables of a launcher."""
    for name in (*KEYS, *SLURM):
        monkeypatch.delenv(name, raising=False)

    def give(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return give


class TestPlace:
    @pytest.mark.parametrize(
        ("variables", "rank", "ranks"),
        [
            ({}, 0, 1),
            ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, 3, 8),
            ({"SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_LOCALID": "1"}, 5, 6),
            ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 1, 2),  # torchrun in a task
        ],
    )
    def test_a_launchers_word(self, given, variables, rank, ranks):
        given(**variables)
        place = PrepareRank.from_environment("cpu")
        assert (place.rank, place.ranks, place.device) == (rank, ranks, "")

    def test_each_rank_takes_a_gpu_of_its_own(self, given, monkeypatch):
        monkeypatch.setattr(module.torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 4)
        monkeypatch.setattr(module, "choose_device", lambda name: name)
        given(RANK="13", WORLD_SIZE="16", LOCAL_RANK="5")
        assert PrepareRank.from_environment().device == "cuda:1"
        assert PrepareRank.from_environment("cpu").device == ""

    @pytest.mark.parametrize(
        ("variables", "message"),
        [
            ({"RANK": "0"}, "RANK='0', WORLD_SIZE='', LOCAL_RANK='0': RANK and WORLD_SIZE must be numbers"),
            ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK must be from 0 to WORLD_SIZE - 1"),
            ({"SLURM_PROCID": "x", "SLURM_NTASKS": "2"}, "SLURM_PROCID and SLURM_NTASKS must be numbers"),
        ],
    )
    def test_half_a_launcher(self, given, variables, message):
        given(**variables)
        with pytest.raises(ValueError, match=message):
            PrepareRank.from_environment("cpu")

    def test_a_device_that_is_not_here(self, given):
        with pytest.raises(ValueError, match=r"device: 'gpu' cannot be used .*; here: cpu"):
            PrepareRank.from_environment("gpu")


@pytest.mark.parametrize(
    ("variables", "seen", "cores"),
    [
        ({}, 12, 12),
        ({"LOCAL_WORLD_SIZE": "4"}, 12, 3),
        ({"LOCAL_WORLD_SIZE": "40"}, 12, 1),
        ({"SLURM_CPUS_PER_TASK": "6", "LOCAL_WORLD_SIZE": "2"}, 12, 6),  # rank.sh under srun -c 6
        ({"SLURM_CPUS_ON_NODE": "64", "SLURM_STEP_TASKS_PER_NODE": "8(x3),2"}, 64, 8),  # not bound: all see all
        ({"SLURM_CPUS_ON_NODE": "64", "SLURM_STEP_TASKS_PER_NODE": "8(x3),2"}, 8, 8),  # bound to its own
    ],
)
def test_cores(given, monkeypatch, variables, seen, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(seen)))
    given(**variables)
    assert prepare.cores() == cores


@pytest.mark.parametrize("out", ["OUT", "s3://bucket/mine/"])
def test_compiled_code_has_a_folder_of_its_own(given, tmp_path, root, monkeypatch, out):
    """On this machine, another one for each preparation."""
    seen = []
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(module, "prepare_files", lambda *_: seen.append(os.environ["TORCHINDUCTOR_CACHE_DIR"]))
    out = out.replace("OUT", str(tmp_path / "out"))
    config = str(root / "configs/tiny.json")
    arguments = ["files", "--manifest", "a.jsonl", "--config", config, "--out", out, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["prepare.py", *arguments])
    assert prepare.main() == 0
    assert seen == [str(scratch_folder(out) / "compiled")]
    assert Path(seen[0]).is_absolute() and scratch_folder(out) != scratch_folder(out + "x")
    assert not out.startswith("/") or seen == [f"{out}/work/compiled"]
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


@pytest.mark.parametrize("scheme", ["azure", "hf", "dbfs", "ftp"])
def test_a_storage_in_which_ranks_cannot_meet_is_refused(scheme):
    message = rf"{scheme}://b/x: expected a folder, or BUCKET/FOLDER after one of s3://, gs://, oci://, alipan://$"
    with pytest.raises(ValueError, match=message):
        open_store(f"{scheme}://b/x", 0)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c(given, tmp_path, root):
    """A sentence and the code of a shell, no traceback; the same command continues."""
    for i in range(40):
        sound(tmp_path / f"{i}.flac", 60.0)
    path = manifest(tmp_path, *({"audio": f"{i}.flac"} for i in range(40)))
    command = [sys.executable, "launch/prepare.py", "files", "--manifest", path, "--config", "configs/tiny.json"]
    command += ["--out", tmp_path / "out", "--workers", "1", "--device", "cpu"]
    process = subprocess.Popen([*map(str, command)], cwd=root, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list((tmp_path / "out").glob("work/blocks/*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said, said


def test_what_deepspeeds_launcher_passes(tmp_path):
    arguments = prepare.parse(
        ["--local_rank=1", "files", "--manifest", "a.jsonl", "--config", "c.json", "--out", "x", "--limit", "60"]
    )
    assert (arguments.local_rank, arguments.limit, arguments.unreachable) == (1, 60.0, 10)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_two_ranks_of_a_launcher_share_a_manifest(given, tmp_path, root, launcher):
    for i in range(8):
        sound(tmp_path / f"{i}.flac", 1.0 + i)
    path = manifest(tmp_path, *({"audio": f"{i}.flac", "category": {"bell": 2}} for i in range(8)))
    files = ["launch/prepare.py", "files", "--manifest", path, "--config", "configs/tiny.json", "--workers", "1"]
    files += ["--device", "cpu", "--out"]
    if launcher == "torchrun":
        command = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    else:
        world = base64.urlsafe_b64encode(json.dumps({"localhost": [0, 1]}).encode()).decode()
        command = ["deepspeed.launcher.launch", f"--world_info={world}", "--node_rank=0", "--master_addr=127.0.0.1"]
        command += [f"--master_port={free_port()}"]

    def run(*arguments):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)

    done = run("-m", *command, *files, tmp_path / launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" audio clips (36.0 s of sound)") == 1, "said by one rank"
    assert {p.name for p in (tmp_path / launcher / "work/ranks").iterdir()} == {"00000.json", "00001.json"}
    alone = run(*files, tmp_path / "alone")
    assert alone.returncode == 0 and contents(tmp_path / launcher) == contents(tmp_path / "alone")
