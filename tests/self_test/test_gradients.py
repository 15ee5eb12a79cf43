"""Gradients under DeepSpeed are those of torch, in every way that a run may be set up. The self-test at the start of a
run refuses an installation in which they are not."""

import json
import subprocess

import pytest

from audiox_trainer.models import strict
from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.core.distill_config import load_distill_config
from audiox_trainer.trainer.self_test.known_faults import TrainingSetup, describe_known_faults
from audiox_trainer.trainer.self_test.small_run import small_run
from tests.helpers.scenario_results import Item, Launch, differing, stage
from tests.helpers.small_config import ROOT, small_config
from tests.helpers.warm_python import python

slow = pytest.mark.slow

BF16 = "training.precision=bf16"
ACCUMULATED = "training.micro_batch=1"
RECOMPUTED = "training.activation_checkpointing=true"


def sizes(**more):
    """Buckets that hold some weights of the small model, and no weight that is whole on every rank."""
    zero = {"reduce_bucket_size": 8192, "stage3_param_persistence_threshold": 64, "stage3_prefetch_bucket_size": 8192}
    return "deepspeed=" + json.dumps({"zero_optimization": zero | more})


BUCKETS, OVERLAP = sizes(), sizes(overlap_comm=True)
ROLES = ("student", "fake", "discriminator")


def roles(number, precision="fp32"):
    low = [f"{role}.precision={precision}" for role in (*ROLES, "teacher")]
    return tuple(f"{role}.zero.stage={number}" for role in ROLES) + tuple(low)


def items(names, scenario="compared", **arguments):
    return [Item(name, scenario, overrides, arguments=arguments) for name, overrides in names.items()]


# Each has two lengths of texts, and other ones on the other rank.
PRETRAINING = {
    "0": stage(0, ACCUMULATED, BF16),
    "1": stage(1, BUCKETS, ACCUMULATED, BF16),
    "2 overlapped, recomputed": stage(2, OVERLAP, ACCUMULATED, RECOMPUTED, BF16),
    "3": stage(3, BUCKETS, ACCUMULATED, BF16),
    "3 recomputed fp32": stage(3, BUCKETS, ACCUMULATED, RECOMPUTED),
}
PRETRAINING_LONG = {
    **{f"{n} fp32": stage(n, BUCKETS, ACCUMULATED) for n in range(4)},
    **{f"{n} overlapped, recomputed": stage(n, OVERLAP, ACCUMULATED, RECOMPUTED, BF16) for n in (1, 3)},
    **{f"{n} offloaded": stage(n, BUCKETS, ACCUMULATED, BF16, "zero.offload_optimizer=true") for n in (1, 2, 3)},
}
DISTILLATION = {
    "distill 2": (*roles(2, "bf16"), OVERLAP, RECOMPUTED, ACCUMULATED, "distillation.fake_alignment=0.5"),
    "distill 3": (*roles(3, "bf16"), BUCKETS, "teacher.sharded=true"),
}
DISTILLATION_LONG = {
    **{f"distill {n} fp32": (*roles(n), BUCKETS, RECOMPUTED, ACCUMULATED) for n in (1, 2, 3)},
    "distill eq10": (*roles(2), BUCKETS, "distillation.loss=eq10"),
}
COMPILED = {f"compiled {n}": stage(n, BUCKETS, BF16) for n in (1, 2, 3)}
LOST = {f"lost {n}": stage(n, BUCKETS, BF16) for n in range(4)}
LOST_LONG = {f"lost {n} fp32": stage(n, BUCKETS) for n in range(4)}
LOST_OF_ROLES = {"lost of roles 2": (*roles(2, "bf16"), BUCKETS)}
LOST_OF_ROLES_LONG = {f"lost of roles {n}": (*roles(n, "bf16"), BUCKETS) for n in (1, 3)}

SHORT = [
    *items(PRETRAINING),
    *items(DISTILLATION, kind="distill"),
    *items(LOST, "checked", fault="lost part"),
    *items(LOST_OF_ROLES, "checked", kind="distill", fault="lost part"),
    Item("last micro-batch", "checked", stage(1, ACCUMULATED, BF16), arguments={"fault": "last micro-batch"}),
    Item("reentrant", "checked", stage(3, BUCKETS, RECOMPUTED), arguments={"fault": "reentrant"}),
]
LONG = [
    Item("compiled without code", "compared", COMPILED["compiled 2"], arguments={"compiler": "aot_eager"}),
    *items(PRETRAINING_LONG),
    *items(DISTILLATION_LONG, kind="distill"),
    *items(COMPILED, compiler="inductor"),
    *items({"distill compiled": (*roles(2, "bf16"), BUCKETS)}, kind="distill", compiler="inductor"),
    *items(LOST_LONG, "checked", fault="lost part"),
    *items(LOST_OF_ROLES_LONG, "checked", kind="distill", fault="lost part"),
    Item("lost later", "checked", stage(2, BUCKETS), arguments={"fault": "lost later part"}),
]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return Launch(2, ROOT, tmp_path_factory.mktemp("gradients"), SHORT, "tests.helpers.gradient_scenarios")


@pytest.fixture(scope="module")
def two_long(tmp_path_factory):
    return Launch(2, ROOT, tmp_path_factory.mktemp("gradients"), LONG, "tests.helpers.gradient_scenarios")


def apart(launch, name):
    """The rows of a comparison that are further apart than rounding explains. All ranks have the same."""
    first, second = (result["rows"] for result in launch.results(name))
    assert first == second
    return [row for row in first if row[5] or (row[2] == "fp32" and row[3] > 3e-6)]


@slow
@pytest.mark.parametrize("name", [item.name for item in SHORT if item.scenario == "compared"])
def test_gradients_are_those_of_torch(two, name):
    assert apart(two, name) == []


@pytest.mark.long
@pytest.mark.parametrize("name", [item.name for item in LONG if item.scenario == "compared"])
def test_gradients_are_those_of_torch_in_other_ways(two_long, name):
    assert apart(two_long, name) == []


@slow
def test_every_role_is_compared_in_two_rounds(two):
    trained = {name: [row[0] for row in two.results(name)[0]["rows"]] for name in ("3", "distill 3")}
    assert trained == {"3": 2 * ["model"], "distill 3": ["student", *2 * ["student", "fake", "discriminator"]]}


def refused(launch, name):
    """The refusal, the same on all ranks, which leaves random states as they were."""
    first, second = launch.results(name)
    assert first == second and first["same"]
    return first["error"]


class TestFaults:
    @slow
    @pytest.mark.parametrize("name", [*LOST, *LOST_OF_ROLES])
    def test_a_lost_part_of_one_reduction_is_found_at_every_stage(self, two, name):
        error = refused(two, name)
        assert "the gradient self-test failed: at ZeRO stage " in error and "no known fault of DeepSpeed " in error

    @pytest.mark.long
    @pytest.mark.parametrize("name", [*LOST_LONG, *LOST_OF_ROLES_LONG, "lost later"])
    def test_it_is_found_in_other_ways(self, two_long, name):
        assert "the gradient self-test failed: at ZeRO stage " in refused(two_long, name)

    @slow
    def test_a_micro_batch_that_is_not_reduced_is_found(self, two):
        assert "at ZeRO stage 1 in bf16 the gradient under DeepSpeed differs" in refused(two, "last micro-batch")

    @slow
    def test_reentrant_checkpointing_is_found_and_named(self, two):
        error = refused(two, "reentrant")
        assert "at ZeRO stage 3 in fp32" in error and "known fault that fits, reentrant checkpointing" in error

    @pytest.mark.parametrize(
        ("found_with", "setup", "named"),
        [
            ("0.18.2", TrainingSetup(2, "bf16", 1, False), "#7718"),
            ("0.18.9", TrainingSetup(1, "bf16", 2, False), "#7985"),
            ("0.19.3", TrainingSetup(2, "bf16", 2, False), "#8224"),
            ("0.19.8", TrainingSetup(3, "fp32", 1, True), "reentrant"),
        ],
    )
    def test_a_known_fault_is_named_with_its_remedy(self, found_with, setup, named):
        sentence = describe_known_faults(found_with, setup)
        assert named in sentence and f"DeepSpeed {found_with} has a known fault" in sentence
        assert ("install deepspeed>=" in sentence) == (named != "reentrant")

    def test_an_unknown_one_is_not(self):
        assert "no known fault of DeepSpeed 0.19.8 fits" in describe_known_faults(
            "0.19.8", TrainingSetup(2, "bf16", 4, True)
        )


class TestSmallRun:
    def test_it_is_the_run_with_a_small_model(self):
        large = load_pretrain_config(ROOT / "configs/2p7b.json", ["zero.stage=3", RECOMPUTED])
        small = small_run(large, 8)
        assert small.zero == large.zero and small.training.precision == large.training.precision
        assert small.training.activation_checkpointing
        backbones = small.model.backbone, large.model.backbone
        assert len({backbone.width // backbone.heads for backbone in backbones}) == 1 and backbones[0].width == 128
        zero = small.deepspeed["zero_optimization"]
        assert 1e5 < zero["reduce_bucket_size"] < 1e6 and 128 < zero["stage3_param_persistence_threshold"] < 128**2

    def test_every_role_keeps_its_stage(self):
        large = load_distill_config(ROOT / "configs/distill_2p7b.json", ["fake.zero.stage=3", "student.precision=fp32"])
        small = small_run(large, 8)
        assert [getattr(small, role).zero.stage for role in ROLES] == [2, 3, 2]
        assert small.student.precision == "fp32" and small.fake.precision == "bf16"

    def test_heads_fit_into_the_small_model(self):
        heads = ("distillation.discriminator_blocks=3", "distillation.discriminator_heads=3")
        small = small_run(load_distill_config(ROOT / "configs/distill_tiny.json", heads), 2).distillation
        assert small.discriminator_blocks == small.discriminator_heads == 2


@slow
def test_a_run_is_bitwise_the_same_after_it(scenes, tmp_path):
    config = small_config(scenes, "training.steps=2", "checkpoint.every=2", "training.precision=fp32")
    (tmp_path / "run.json").write_text(json.dumps(strict.to_dict(config)))
    command = [*python(), "launch/pretrain.py", "--config", str(tmp_path / "run.json"), "--output"]
    for name, flags in (("tested", ["--self-test"]), ("untested", [])):  # on a CPU one rank alone is not tested unasked
        done = subprocess.run(
            [*command, str(tmp_path / name), *flags], cwd=ROOT, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        assert ("gradient self-test on 1 rank: largest deviation of model " in done.stdout) == bool(flags)
    assert differing(*(tmp_path / name / "checkpoints" / "step_00000002" for name in ("tested", "untested"))) == []
