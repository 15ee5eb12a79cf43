"""Values that a distillation's configuration refuses, and values that it derives."""

import re
import subprocess
from pathlib import Path

import pytest

from audiox_trainer.models.audiox import AudioX, SamplingConfig
from audiox_trainer.models.sampler import Guidance, sampling_timesteps
from audiox_trainer.trainer.core.config import OptimizerConfig, ScheduleConfig, load_pretrain_config
from audiox_trainer.trainer.core.distill_config import PRESETS, load_distill_config
from audiox_trainer.trainer.core.noise_levels import NoiseLevels
from audiox_trainer.trainer.core.tasks import TASKS
from audiox_trainer.trainer.distillation.distill import load_teacher
from tests.helpers.small_config import ROOT, small_distill_config
from tests.helpers.warm_python import python

CONFIGS = sorted((ROOT / "configs").glob("distill_*.json"))


def test_there_are_configurations():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_what_ships_is_allowed(path):
    config = load_distill_config(path)
    assert config.sampling.steps == 4 and config.sampling.guidance == 1


@pytest.mark.parametrize(("preset", "counts"), PRESETS.items())
def test_presets(preset, counts):
    plain = ("updates.student=null", "updates.fake=null", "updates.discriminator=null", f"updates.preset={preset}")
    config = small_distill_config(None, *plain)
    assert config.updates.counts == counts and config.cycle.updates_per_round == sum(counts)
    assert small_distill_config(None, *plain, "updates.fake=3").updates.counts == (counts[0], 3, counts[2])


def test_a_discriminator_whose_loss_weighs_nothing_has_no_turn():
    warm_up = "updates.discriminator_warm_up=3"
    without = small_distill_config(None, "distillation.adversarial_weight=0", warm_up).cycle
    assert without.discriminator == without.discriminator_warm_up == 0
    cycle = small_distill_config(None, warm_up).cycle
    assert cycle.discriminator > 0 and cycle.discriminator_warm_up == 3


def test_the_paper_and_what_keeps_up_with_it():
    paper, shipped = (load_distill_config(ROOT / f"configs/distill_2p7b{name}.json") for name in ("_paper", ""))
    assert {paper.student.optimizer.lr, paper.fake.optimizer.lr, paper.discriminator.optimizer.lr} == {1e-5}
    assert shipped.fake.optimizer.lr == 10 * shipped.student.optimizer.lr and shipped.updates.fake_warm_up == 500
    assert paper.updates.fake_warm_up == paper.updates.discriminator_warm_up == 0
    assert shipped.checkpoint.keep_last == 0, "the best is not the last"
    assert paper.updates.counts == shipped.updates.counts == (5, 1, 1)
    assert paper.model == shipped.model == load_pretrain_config(ROOT / "configs/2p7b.json").model


def test_a_full_size_run_has_the_clips_of_table_a1():
    streams = load_pretrain_config(ROOT / "configs/2p7b.json").data.streams
    assert {name: weight for stream in streams for name, weight in stream.tasks.items()} == {
        name: task.clips for name, task in TASKS.items()
    }


def test_the_paper_is_as_section_vi_a_has_it():
    """Every value that the paper names; where it is silent, the reading of docs/distillation.md."""
    paper = load_distill_config(ROOT / "configs/distill_2p7b_paper.json")
    own, levels = paper.distillation, paper.distillation.noise_levels
    assert paper.sampling == SamplingConfig("renoise", 4, 1.0)
    assert sampling_timesteps(paper.sampling) == [1, 0.75, 0.5, 0.25, 0]
    assert own.step_probabilities == (0.25, 0.25, 0.25, 0.25)
    assert not (own.fake_step_probabilities or own.discriminator_step_probabilities)
    assert own.guidance == Guidance(6.0, (0.0, 1.0))
    assert paper.updates.counts == (5, 1, 1) and paper.cycle.first_round == 0
    assert own.discriminator_blocks == 6 and own.discriminator_heads == 1
    assert own.discriminator_noise_levels == NoiseLevels((0.0, 0.2))
    assert (own.matching_weight, own.adversarial_weight, own.regression_weight) == (1, 1, 0)
    assert own.adversarial_gradient_ratio is None and own.guidance_noise_levels is None
    assert own.fake_alignment == own.r1_weight == own.contrastive_weight == 0
    assert (own.loss, own.loss_weight) == ("dmd", "one") and levels == NoiseLevels((0.02, 0.98))
    for role in (paper.student, paper.fake, paper.discriminator):
        assert role.optimizer == OptimizerConfig(lr=1e-5, betas=(0.9, 0.999), weight_decay=1e-3)
        assert role.schedule == ScheduleConfig(warmup=0.99, inv_gamma=1e6, power=0.5, final_lr=0.0, cooldown=0.0)


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
        (
            "distillation.noise_levels.range=[0.5, 0.2]",
            "distillation.noise_levels.range: [0.5, 0.2] must be two levels",
        ),
        ("distillation.noise_range=[0.5, 0.9]", "distillation.noise_range: is called noise_levels now"),
        ("distillation.fake_step_probabilities=[1]", "distillation.fake_step_probabilities: 1 values for the 4 steps"),
        ("warm_start.step_probabilities=[0.5, 0.5]", "warm_start.step_probabilities: 2 values for the 4 steps"),
        ("distillation.adversarial_weight=-1", "distillation.adversarial_weight: -1 must be at least 0"),
        ("distillation.loss=kl", "distillation.loss: 'kl' is not allowed; expected 'dmd' or 'eq10'"),
        ("distillation.lamda=1", "distillation.lamda: unknown key"),
        ("student.zero.stage=4", "student.zero.stage: 4 must be at most 3"),
        ("fake.zero.stage=0", "fake.zero.stage: 0, where DeepSpeed computes in bf16 in some forwards only"),
        ("training.steps=11", "training.steps: 11 is not a multiple of the student's 5 updates per round"),
        ("warm_start.ode_steps=0", "warm_start.ode_steps: 0 must be at least 1"),
        (
            'warm_start.targets=["endpoint", "velocity", "endpoint", "ode"]',
            "warm_start.targets: ['endpoint', 'velocity', 'endpoint', 'ode']; with sampling.sampler renoise every step",
        ),
        ('warm_start.targets=["ode"]', "warm_start.targets: 1 values for the 4 steps"),
        ("warm_start.pairs=data/pairs", "warm_start.pairs: data/pairs, but the student regresses on no endpoint"),
        ("distillation.guidance_interval=[1, 0]", "distillation.guidance_interval: [1.0, 0.0] must be two levels"),
        (
            "distillation.adversarial_gradient_ratio=0.1",
            "distillation.adversarial_gradient_ratio: 0.1 decides the weight itself",
        ),
        (
            'distillation={"guidance_noise_levels": {}, "loss": "eq10"}',
            "distillation.guidance_noise_levels: splits the",
        ),
        ("distillation.discriminator_heads=2", "distillation.discriminator_heads: 2 on 1 discriminator_blocks"),
        (
            'distillation={"matching_weight": 0, "adversarial_weight": 0, "discriminator_blocks": 1}',
            "distillation.matching_weight: 0, like adversarial_weight",
        ),
        ("distillation.contrastive_weight=-1", "distillation.contrastive_weight: -1 must be at least 0"),
        ("warm_start.lr=0", "warm_start.lr: 0 must be above 0"),
    ],
)
def test_what_is_refused(override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        small_distill_config(None, override)


def test_what_needs_two_settings_is_refused():
    with pytest.raises(ValueError, match="contrastive_weight: takes the conditions of another sample"):
        small_distill_config(None, "distillation.contrastive_weight=1", "training.micro_batch=1")
    with pytest.raises(ValueError, match=r"fake_alignment: moves each rank's part .* zero and precision of student"):
        small_distill_config(None, "distillation.fake_alignment=0.1", "fake.zero.stage=3")


@pytest.mark.parametrize(
    ("role", "override", "message"),
    [
        ("discriminator", "training.seed=0", "discriminator.lora: its head is trained as a whole"),
        ("fake", "fake.zero.stage=3", "fake.zero.stage: 3 with fake.lora, which shares the teacher's"),
        ("fake", "teacher.sharded=true", "teacher.sharded: true with fake.lora, which shares"),
        ("student", "student.precision=bf16", "student.precision: bf16 with student.lora"),
        ("student", "training.fp8=true", "training.fp8: true with student.lora"),
        ("student", "init.weights=weights/other", "init.weights: weights/other, but with student.lora"),
        ("fake", "distillation.fake_alignment=0.1", "distillation.fake_alignment: moves whole weights"),
        ("fake", 'fake.lora.train=["backbone.*"]', "fake.lora.train: 'backbone.*' is the teacher's too"),
    ],
)
def test_adapters_share_what_the_teacher_has(role, override, message):
    lora = f'{role}.lora={{"rank": 2, "targets": ["backbone.blocks.*.qkv"]}}'
    if role != "discriminator":
        assert list(small_distill_config(None, lora).adapted) == [role]
    with pytest.raises(ValueError, match=re.escape(message)):
        small_distill_config(None, lora, override)


def test_a_fake_model_that_nothing_asks_has_no_turn():
    cycle = small_distill_config(None, "distillation.matching_weight=0").cycle
    assert cycle.fake == cycle.fake_warm_up == 0 and cycle.discriminator > 0


def test_targets_follow_the_sampler():
    assert small_distill_config().targets == ("velocity", "velocity", "velocity", "ode")
    assert small_distill_config(None, "sampling.sampler=euler").targets == 4 * ("endpoint",)
    first = 'warm_start.targets=["endpoint", "velocity", "ode", "ode"]'
    assert small_distill_config(None, first, "warm_start.pairs=data/pairs").paired_updates == 1


def test_a_teacher_of_another_architecture(tmp_path):
    config = small_distill_config()
    AudioX(config.model).save_pretrained(tmp_path / "teacher")
    assert load_teacher(config, tmp_path / "teacher")[0].config == config.model
    other = small_distill_config(None, "model.backbone.mlp_hidden=96")
    with pytest.raises(ValueError, match=r"model\.backbone\.mlp_hidden: the teacher in .* has 64, this .* 96"):
        load_teacher(other, tmp_path / "teacher")


@pytest.mark.slow
def test_the_command_refuses_before_it_starts(tmp_path):
    command = [*python(), "launch/distill.py", "--config", "configs/distill_tiny.json", "--output", str(tmp_path)]
    command += ["--teacher", str(tmp_path / "nowhere"), "--set", f"data.streams.0.path={tmp_path}/shards"]
    done = subprocess.run(command, cwd=Path(ROOT), capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/shards") and "\n" not in done.stderr.strip()


def test_the_other_kind_of_configuration_is_named():
    with pytest.raises(ValueError, match=r"tiny.json: optimizer: this configuration is for launch/pretrain\.py"):
        load_distill_config(ROOT / "configs" / "tiny.json")
    with pytest.raises(ValueError, match=r"tiny.json: student: this configuration is for launch/distill\.py"):
        load_pretrain_config(ROOT / "configs" / "distill_tiny.json")
