"""Values that a distillation's configuration refuses, and values that it derives."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from audiox_trainer.models.audiox import AudioX
from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.core.distill_config import load_distill_config
from audiox_trainer.trainer.training.distill import load_teacher
from tests.helpers.small_config import ROOT, small_distill_config

CONFIGS = sorted((ROOT / "configs").glob("distill_*.json"))


def test_there_are_configurations():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_what_ships_is_allowed(path):
    config = load_distill_config(path)
    assert config.sampling.steps == 4 and config.sampling.guidance == 1


@pytest.mark.parametrize(("preset", "counts"), [("paper", (5, 1, 1)), ("dmd2", (1, 5, 1)), ("even", (1, 1, 1))])
def test_presets(preset, counts):
    plain = ("updates.student=null", "updates.fake=null", "updates.discriminator=null", f"updates.preset={preset}")
    config = small_distill_config(None, *plain)
    assert config.updates.counts == counts and config.cycle.updates_per_round == sum(counts)
    assert small_distill_config(None, *plain, "updates.fake=3").updates.counts == (counts[0], 3, counts[2])


def test_a_discriminator_whose_loss_weighs_nothing_has_no_turn():
    assert small_distill_config(None, "distillation.adversarial_weight=0").cycle.discriminator == 0
    assert small_distill_config().cycle.discriminator > 0


def test_the_paper_and_what_keeps_up_with_it():
    paper, shipped = (load_distill_config(ROOT / f"configs/distill_2p7b{name}.json") for name in ("_paper", ""))
    assert {paper.student.optimizer.lr, paper.fake.optimizer.lr, paper.discriminator.optimizer.lr} == {1e-5}
    assert shipped.fake.optimizer.lr == 10 * shipped.student.optimizer.lr and shipped.updates.fake_warm_up == 500
    assert paper.updates.counts == shipped.updates.counts == (5, 1, 1)
    assert paper.model == shipped.model == load_pretrain_config(ROOT / "configs/2p7b.json").model


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("updates.student=0", "updates.student: 0 must be at least 1"),
        ("updates.discriminator=-1", "updates.discriminator: -1 must be at least 1"),
        ("updates.fake_warm_up=-1", "updates.fake_warm_up: -1 must be at least 0"),
        ("sampling.timesteps=[0.9, 0.5, 0.3, 0.1]", "sampling.timesteps: [0.9, 0.5, 0.3, 0.1] must fall from 1"),
        ("sampling.timesteps=[1.0, 0.5, 0.5, 0.1]", "sampling.timesteps: [1.0, 0.5, 0.5, 0.1] must fall from 1"),
        ("sampling.timesteps=[1.0, 0.5]", "sampling.timesteps: 2 levels for 4 steps"),
        ("sampling.guidance=3", "sampling.guidance: 3; a student samples without guidance: set 1"),
        (
            "distillation.discriminator_blocks=3",
            "distillation.discriminator_blocks: 3 of a teacher with model.backbone.depth 2",
        ),
        ("distillation.step_probabilities=[1.0]", "distillation.step_probabilities: 1 values for the 4 steps"),
        (
            "distillation.step_probabilities=[1, 1, 1, 1]",
            "distillation.step_probabilities: [1.0, 1.0, 1.0, 1.0] must be 0 or more",
        ),
        ("distillation.noise_range=[0.5, 0.2]", "distillation.noise_range: [0.5, 0.2] must be two levels"),
        ("distillation.adversarial_weight=-1", "distillation.adversarial_weight: -1 must be at least 0"),
        ("distillation.loss=kl", "distillation.loss: 'kl' is not allowed; expected 'dmd' or 'eq10'"),
        ("distillation.lamda=1", "distillation.lamda: unknown key"),
        ("student.zero.stage=4", "student.zero.stage: 4 must be at most 3"),
        ("fake.zero.stage=0", "fake.zero.stage: 0, where DeepSpeed computes in bf16 in some forwards only"),
        ("training.steps=11", "training.steps: 11 is not a multiple of the student's 5 updates per round"),
        ("warm_start.ode_steps=0", "warm_start.ode_steps: 0 must be at least 1"),
        ("warm_start.lr=0", "warm_start.lr: 0 must be above 0"),
    ],
)
def test_what_is_refused(override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        small_distill_config(None, override)


def test_a_teacher_of_another_architecture(tmp_path):
    config = small_distill_config()
    AudioX(config.model).save_pretrained(tmp_path / "teacher")
    assert load_teacher(config, tmp_path / "teacher")[0].config == config.model
    other = small_distill_config(None, "model.backbone.mlp_hidden=96")
    with pytest.raises(ValueError, match=r"model\.backbone\.mlp_hidden: the teacher in .* has 64, this .* 96"):
        load_teacher(other, tmp_path / "teacher")


@pytest.mark.slow
def test_the_command_refuses_before_it_starts(tmp_path):
    command = [sys.executable, "launch/distill.py", "--config", "configs/distill_tiny.json", "--output", str(tmp_path)]
    command += ["--teacher", str(tmp_path / "nowhere"), "--set", f"data.streams.0.path={tmp_path}/shards"]
    done = subprocess.run(command, cwd=Path(ROOT), capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/shards") and "\n" not in done.stderr.strip()


def test_the_other_kind_of_configuration_is_named():
    with pytest.raises(ValueError, match=r"tiny.json: optimizer: this configuration is for launch/pretrain\.py"):
        load_distill_config(ROOT / "configs" / "tiny.json")
    with pytest.raises(ValueError, match=r"tiny.json: student: this configuration is for launch/distill\.py"):
        load_pretrain_config(ROOT / "configs" / "distill_tiny.json")
