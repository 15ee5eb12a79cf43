"""A preparation finds its devices, its cores and the nodes of its launcher, and refuses a wrong start."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from audiox_trainer.launch import prepare
from audiox_trainer.trainer.data.storage import open_store, scratch_folder
from audiox_trainer.trainer.prepare import prepare_files as module
from audiox_trainer.trainer.prepare.prepare_files import choose_devices
from audiox_trainer.trainer.workers.cluster import Rank, launched, rank_from_environment
from tests.helpers.preparation import manifest, sound

KEYS = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RAY_AUTH_TOKEN", "SLURM_CPUS_PER_TASK",
        "TORCHELASTIC_USE_AGENT_STORE")  # fmt: skip


@pytest.fixture
def given(monkeypatch):
    """Sets exactly these variables of a launcher."""
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)

    def give(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return give


class TestDevices:
    def test_all_gpus_of_this_machine(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
        assert choose_devices(None, "") == ("cuda:0", "cuda:1", "cuda:2")
        assert choose_devices("cpu", "") == choose_devices("cpu", "auto") == ()
        assert choose_devices(None, "auto") == ("cuda",), "a node of the cluster may have one"

    def test_none(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        assert choose_devices(None, "") == ()
        with pytest.raises(ValueError, match=r"device: 'gpu' cannot be used .*; here: cpu"):
            choose_devices("gpu", "")


NODE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "7", "RAY_AUTH_TOKEN": "a" * 64}


class TestNodes:
    def test_a_node_of_a_launcher(self, given):
        assert rank_from_environment() is None
        given(**NODE, LOCAL_WORLD_SIZE="1")
        assert rank_from_environment() == Rank(1, 2, "n1", 7)
        given(**NODE, TORCHELASTIC_USE_AGENT_STORE="True")
        assert rank_from_environment() == Rank(1, 2, "n1", 8), "torchrun listens at its own port"
        given(RANK="0", WORLD_SIZE="1")
        assert rank_from_environment() is None, "one machine needs no cluster"

    @pytest.mark.parametrize(
        ("variables", "message"),
        [
            ({"WORLD_SIZE": ""}, "RANK='1', WORLD_SIZE='': must be numbers"),
            ({"RANK": "2"}, "RANK='2', WORLD_SIZE='2': must be numbers, RANK below WORLD_SIZE"),
            ({"LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE=8: start one task per node"),
            ({"MASTER_PORT": ""}, "MASTER_ADDR='n1', MASTER_PORT='': where 2 nodes meet"),
            ({"RAY_AUTH_TOKEN": ""}, "RAY_AUTH_TOKEN is not set: 2 nodes need a secret in common"),
        ],
    )
    def test_half_a_launcher(self, given, variables, message):
        given(**NODE | variables)
        with pytest.raises(ValueError, match=message):
            rank_from_environment()

    def test_an_address_comes_before_a_launcher(self, given):
        given(**NODE)
        with launched("auto", 1) as address:
            assert address == "auto"


def test_cores(given, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert prepare.cores() == 12
    given(SLURM_CPUS_PER_TASK="6")
    assert prepare.cores() == 6


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
def test_a_storage_that_cannot_be_listed_is_refused(scheme):
    message = rf"{scheme}://b/x: expected a folder, or BUCKET/FOLDER after one of s3://, gs://, oci://, alipan://$"
    with pytest.raises(ValueError, match=message):
        open_store(f"{scheme}://b/x")


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
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said, said
