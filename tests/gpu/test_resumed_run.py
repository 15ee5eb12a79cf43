"""A run that reads shards with T5 on the device, saves, and is resumed: on a GPU where there is one."""

import json
import shutil

import pytest
import torch

from audiox_trainer.models import strict
from audiox_trainer.trainer.benchmarks.data import write_random_shards
from tests.helpers.encoder_weights import save_t5
from tests.helpers.run_script import run_script
from tests.helpers.small_config import CLIPS, small_config

ON_GPU = torch.cuda.is_available()
STEPS, EVERY = 6, 3
TOLERANCE = 2e-2 if ON_GPU else 0  # attention's backward in a library may add up in any order


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.mark.long
def test_a_run_with_t5_on_the_device_is_saved_and_resumed(tmp_path):
    weights = save_t5(tmp_path / "t5")
    text = {"kind": "t5", "dim": 32, "max_tokens": 64, "pad_to_multiple_of": 32, "weights": str(weights)}
    overrides = [f"model.text={json.dumps(text)}", "model.backbone.heads=1", f"training.steps={STEPS}"]
    overrides += [f"checkpoint.every={EVERY}", "training.precision=bf16"] if ON_GPU else [f"checkpoint.every={EVERY}"]
    config = small_config(tmp_path, *overrides)
    for stream in ("audio", "music"):
        write_random_shards(config, tmp_path / stream, CLIPS // 2)
    (tmp_path / "config.json").write_text(json.dumps(strict.to_dict(config)))
    command = ["launch/pretrain.py", "--config", tmp_path / "config.json", "--no-self-test", "--output"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_script(*command, whole)
    shutil.copytree(whole, resumed)
    run_script(*command, resumed, "--resume", "--from", EVERY)
    assert losses(whole).keys() == set(range(1, STEPS + 1))
    for step in range(EVERY + 1, STEPS + 1):
        assert losses(resumed)[step] == pytest.approx(losses(whole)[step], rel=TOLERANCE)
