"""Runs that begin from weights, as a user starts them."""

import json
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from audiox_trainer.models import strict
from audiox_trainer.models.audiox import WEIGHTS
from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.core.files import hash_file
from audiox_trainer.trainer.core.integrity import read_manifest
from tests.helpers.small_config import ROOT, small_config, small_distill_config
from tests.helpers.warm_python import python

pytestmark = pytest.mark.slow


def start(script, folder, config, *arguments):
    (folder / "config.json").write_text(json.dumps(strict.to_dict(config)))
    command = [*python(), f"launch/{script}.py", "--config", folder / "config.json", *arguments]
    return subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=1500)


def newest(run):
    (folder, *_) = load.list_checkpoints(run)
    return folder, read_manifest(folder)


def test_a_run_begins_from_weights_and_resumes_without_them(scenes, weights, tmp_path):
    given = tmp_path / "given"
    shutil.copytree(weights, given)
    first = load_file(given / WEIGHTS)
    config = small_config(scenes, f"init.weights={given}", "training.steps=2", "optimizer.lr=1e-12")
    done = start("pretrain", tmp_path, config, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    digest = hash_file(given / WEIGHTS)
    assert f"begins from {given} (xxh3 {digest}): {len(first)} tensors loaded" in done.stdout
    checkpoint, manifest = newest(tmp_path / "run")
    assert manifest["init"]["xxh3"] == digest and manifest["step"] == manifest["roles"]["model"]["updates"] == 2
    assert json.loads((tmp_path / "run" / "init.json").read_text()) == manifest["init"]
    for kind in ("weights", "ema"):  # two steps at a rate of next to nothing
        for name, x in load.full_tensors(checkpoint, "model", kind).items():
            torch.testing.assert_close(x, first[name], rtol=0, atol=1e-9)

    shutil.rmtree(given)
    config = small_config(scenes, f"init.weights={given}", "training.steps=3", "optimizer.lr=1e-12")
    done = start("pretrain", tmp_path, config, "--output", tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert newest(tmp_path / "run")[1]["init"] == manifest["init"]
    other = small_config(scenes, "init.weights=other", "training.steps=4")
    refused = start("pretrain", tmp_path, other, "--output", tmp_path / "run", "--resume")
    assert refused.returncode == 1 and f"init.weights: the run in {tmp_path / 'run'} has '{given}'" in refused.stderr

    student = small_distill_config(
        scenes,
        f"init.weights={tmp_path / 'run'}",
        "training.steps=1",
        "updates.student=1",
        "updates.fake_warm_up=0",
        "warm_start.updates=0",
        "student.optimizer.lr=1e-12",
    )
    done = start("distill", tmp_path, student, "--teacher", weights, "--output", tmp_path / "student")
    assert done.returncode == 0, done.stderr
    checkpoint, manifest = newest(tmp_path / "student")
    source = newest(tmp_path / "run")[0]
    assert manifest["init"]["xxh3"] == hash_file(source / "manifest.json")
    began = load.full_tensors(source, "model", "ema")
    for name, x in load.full_tensors(checkpoint, "student", "weights").items():
        torch.testing.assert_close(x, began[name], rtol=0, atol=1e-9)
