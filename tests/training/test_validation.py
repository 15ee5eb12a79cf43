"""The loss on held-out samples: right, the same for every number of ranks, without an effect on training; the best
checkpoint by it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiox_trainer.models.audiox import AudioX
from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.checkpoint.convert_run import convert_run
from audiox_trainer.trainer.checkpoint.save import _commit
from audiox_trainer.trainer.core.config import DropoutConfig, ValidationConfig
from audiox_trainer.trainer.core.integrity import write_manifest
from audiox_trainer.trainer.core.rng import Purpose, sample_rng
from audiox_trainer.trainer.training.save_and_resume import Checkpoints
from audiox_trainer.trainer.training.validation import check_held_out
from tests.helpers.reader_ranks import open_reader
from tests.helpers.scenario_results import SCENES, VALIDATED
from tests.helpers.small_config import small_config


def losses(folder):
    """step -> {name: value} of the lines that have a validation."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        line["step"]: {k: v for k, v in line.items() if k.startswith("validation/")}
        for line in lines
        if "validation/loss" in line
    }


def config_of(scenes, *overrides):
    return small_config(None, *(setting.replace(SCENES, str(scenes)) for setting in (*VALIDATED, *overrides)))


@pytest.mark.slow
def test_it_is_that_of_a_plain_loop(one, scenes):
    config, found = config_of(scenes), losses(one.folders["validated on one"])
    assert list(found) == [2, 4, 6, 8, 10, 12]
    model = AudioX(config.model)
    model.load_state_dict(load.full_tensors(one.checkpoint("validated on one", 12), "model", "ema"))
    data = replace(config.data, streams=config.validation.streams, dropout=DropoutConfig(0, 0, 0, 0))
    training = replace(config.training, global_batch=16)
    alone = replace(config, data=data, training=training, validation=ValidationConfig())
    batch = next(open_reader(alone).batches(0))
    assert set(batch.tasks) == {"T2M", "TV2M", "completion"} and "music" in batch.streams[0]
    rngs = [sample_rng(0, 0, index, Purpose.NOISE) for index in batch.indices.tolist()]
    noise = torch.stack([torch.from_numpy(rng.standard_normal((8, 16), dtype=np.float32)) for rng in rngs])
    conditions = batch.conditions.to(noise.device, torch.float32).tensors()
    expected = {}
    for level in (0.2, 0.7):
        noisy = level * noise + (1 - level) * batch.latents
        with torch.no_grad():
            velocity = model(noisy, torch.full((16,), level), *conditions)
        expected[f"validation/loss_at/{level:.2f}"] = (velocity - (noise - batch.latents)).square().mean().item()
    expected["validation/loss"] = sum(expected.values()) / 2
    assert found[12] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_it_is_the_same_on_two_ranks_with_sharded_weights(one, two):
    first, second = (losses(launch.folders[name]) for launch, name in ((one, "validated on one"), (two, "validated")))
    assert list(first) == list(second)
    for step, values in first.items():
        assert second[step] == pytest.approx(values, rel=1e-4)


@pytest.mark.slow
def test_training_is_the_same_with_it(one):
    files = [load.read_manifest(one.checkpoint(name, 12))["files"] for name in ("validated on one", "not validated")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_checkpoint_has_its_loss_and_the_best_is_converted(one, tmp_path):
    run = one.folders["validated on one"]
    found = losses(run)
    for folder in load.list_checkpoints(run):
        manifest = load.read_manifest(folder)
        assert manifest[load.VALIDATION] == found[manifest["step"]]["validation/loss"]
    best = load.best_checkpoint(run)
    assert load.step_of(best) == min((4, 8, 12), key=lambda step: found[step]["validation/loss"])
    assert convert_run(run, tmp_path / "weights", best=True) == best
    with pytest.raises(
        ValueError, match=r"--best: no checkpoint of .* has a loss on held-out samples or a score; set validation"
    ):
        convert_run(one.folders["not validated"], tmp_path / "none", best=True)


def test_a_loss_that_is_no_number_is_not_written():
    """JSON has none, and the manifest has to stay readable."""
    checkpoints = object.__new__(Checkpoints)
    checkpoints.validated(4, 0.5)
    assert checkpoints.validation == (4, 0.5)
    checkpoints.validated(8, float("nan"))
    assert checkpoints.validation is None


def test_the_best_checkpoint_stays(tmp_path):
    for step, loss in ((1, 0.5), (2, 0.3), (3, 0.4), (4, 0.35), (5, None)):
        folder = load.step_folder(tmp_path, step)
        (partial := folder.with_name(f"{folder.name}.partial")).mkdir(parents=True)
        write_manifest(partial, {"step": step, "files": {}})
        score = {} if loss is None else {load.VALIDATION: loss}
        _commit(folder, {"step": step, "files": {}, "healthy": False} | score, keep=1, keep_every=0)
    assert [load.step_of(folder) for folder in load.list_checkpoints(tmp_path)] == [5, 2]
    assert load.step_of(load.best_checkpoint(tmp_path)) == 2


@pytest.mark.parametrize(
    "override, says",
    [
        ("samples=18", r"validation\.samples, which are one batch: "),
        ("samples=400", r"validation\.streams: \d+ samples are fewer than validation\.samples 400"),
        ("every=3", r"validation\.every: 3 must divide checkpoint\.every, 4, so that every checkpoint has its loss"),
        ("streams=[]", r"validation\.streams: empty; give the folders of shards that were held out"),
        ("levels=[0.5, 1.5]", r"validation\.levels: \[0\.5, 1\.5\] must be at least one number above 0"),
        (f'streams=[{{"path": "{SCENES}/audio", "tasks": {{"T2A": 1}}}}]', r"is in data\.streams too"),
        (f'streams=[{{"path": "{SCENES}/gone", "tasks": {{"T2A": 1}}}}]', r"gone"),
    ],
)
def test_what_is_refused(scenes, override, says):
    with pytest.raises(ValueError, match=says):
        check_held_out(config_of(scenes, f"validation.{override}"), ranks=1)
