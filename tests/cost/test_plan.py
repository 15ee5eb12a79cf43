"""Plans: what fits, what divides, what is recommended, and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

import launch.plan
from audiox_trainer.models import strict
from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.core.gpu_specs import GPUS, find_gpu
from audiox_trainer.trainer.cost.planned_memory import (
    Layout,
    largest_micro_batch,
    micro_batches,
    planned_memory,
    usable_memory,
)
from audiox_trainer.trainer.cost.planned_time import Cluster, average_update_time, save_seconds, update_time
from audiox_trainer.trainer.cost.recommendation import (
    batch_problem,
    batches_that_divide,
    gpu_counts_that_divide,
    recommend,
)
from audiox_trainer.trainer.cost.simulated_memory import SimulatedModel
from audiox_trainer.trainer.cost.workload import LINE_END, workload
from tests.helpers.run_script import measured_plan
from tests.helpers.small_config import ROOT, small_config, small_distill_config
from tests.helpers.warm_python import python

TOKENS = 16


class TestDistillation:
    @pytest.fixture(scope="class")
    @classmethod
    def simulated(cls):
        return SimulatedModel(small_distill_config().model, "fp32", None, TOKENS)

    def test_a_student_keeps_its_graph_while_others_are_asked(self, simulated):
        config = small_distill_config()
        alone, asked = simulated.training(4, False), simulated.student(config, 4, False)
        assert alone.saved <= asked.saved < 1.1 * alone.saved and asked.peak > 1.1 * alone.peak

    @pytest.mark.parametrize(
        ("more", "less"),
        [
            ("distillation.loss=eq10", "distillation.loss=dmd"),
            ("distillation.loss=eq10", "distillation.loss=eq10_sg_teacher"),
            ("distillation.teacher_guidance=3", "distillation.teacher_guidance=1"),
        ],
    )
    def test_settings_that_need_more_memory(self, simulated, more, less):
        without = "distillation.adversarial_weight=0"
        peaks = [simulated.student(small_distill_config(None, without, c), 4, False).peak for c in (more, less)]
        assert peaks[0] > peaks[1]

    def test_roles_updates_and_passes(self):
        config = small_distill_config()
        work = workload(config, on_gpu=False)
        assert [role.name for role in work.roles] == ["student", "fake", "discriminator", "teacher"]
        assert {u.name: u.count for u in work.updates} == {
            "warm_start": 1,
            "fake_warm_up": 2,
            "student": 10,
            "fake": 2,
            "discriminator": 2,
        }
        assert work.total == config.cycle.total_updates(config.training.steps)
        student = next(u for u in work.updates if u.name == "student")
        assert student.passes == {"student": (2.5, 1), "fake": (1, 0), "teacher": (2, 1), "discriminator": (1, 1)}


@pytest.fixture(scope="module")
def paper():
    """A pretraining of the paper's size."""
    return workload(load_pretrain_config(ROOT / "configs" / "2p7b.json"))


class TestMemory:
    def test_interpolated_activations_are_never_below_the_truth(self, paper):
        config = load_pretrain_config(ROOT / "configs" / "2p7b.json")
        simulated = SimulatedModel(config.model, "bf16", config.kernels, 128)
        for samples in (1, 2, 7, 30, LINE_END):
            line, true = paper.updates[0].activations(samples, False), simulated.training(samples, False)
            assert true.peak <= line.peak <= 1.02 * true.peak

    def test_states_of_the_paper_size(self, paper):
        """GB at 8 GPUs by stage: bf16 weights, fp32 masters, gradients, moments and EMA of 2.40 B parameters."""
        plan = Layout(8, 2, 15, 240, False)
        (held,) = planned_memory(paper, plan).roles.values()
        count = paper.parameters["total"]
        assert held.weights == pytest.approx(2 * count + 4 * count / 8, rel=1e-6)
        assert held.total - held.weights == pytest.approx((4 + 8 + 4) * count / 8, rel=1e-6)
        (shared,) = planned_memory(paper, replace(plan, stage=3)).roles.values()
        assert shared.total == pytest.approx(22 * count / 8, rel=1e-3)

    def test_the_largest_micro_batch_is_the_largest(self, paper):
        for gpu, again in (("h100", False), ("a100-40", True), ("b200", False)):
            plan = Layout(8, 2, 1, 240, again)
            most = largest_micro_batch(paper, plan, GPUS[gpu])
            plans = [replace(plan, micro_batch=most + more) for more in (0, 1)]
            totals = [planned_memory(paper, one, accumulating=True).total for one in plans]
            assert totals[0] <= usable_memory(GPUS[gpu]) < totals[1]

    def test_what_does_not_fit(self, paper):
        assert largest_micro_batch(paper, Layout(1, 2, 1, 240, True), GPUS["4090"]) == 0
        assert recommend(paper, Cluster(GPUS["4090"], 1)) is None

    def test_one_micro_batch_has_no_gradients_beside_activations(self, paper):
        plan = Layout(8, 2, 30, 240, False)
        one, more = (planned_memory(paper, plan, accumulating=several) for several in (False, True))
        assert more.total - one.total == one.roles["model"].gradients

    def test_sums_stay_at_stage_1_during_passes_and_other_roles_updates(self, paper):
        plan = Layout(8, 1, 30, 240, False)
        one, more = (planned_memory(paper, plan, accumulating=several) for several in (False, True))
        assert more.total - one.total == 2 * paper.parameters["total"]  # those that come and go, in bf16
        work = workload(small_distill_config(None, "fake.precision=bf16", "fake.zero.stage=1"), on_gpu=False)
        lone = Layout(1, None, 4, 8, False)
        fake = next(role for role in work.roles if role.name == "fake")
        without = replace(work, roles=tuple(role for role in work.roles if role is not fake), updates=work.updates[2:3])
        assert without.updates[0].role == "student"
        held = planned_memory(replace(work, updates=without.updates), lone).total - planned_memory(without, lone).total
        assert held == fake.bytes(0, 1).total - 2 * fake.count

    def test_offload_is_refused(self):
        with pytest.raises(ValueError, match=r"zero\.offload_optimizer: true, which the arithmetic does not cover"):
            workload(small_config(None, "zero.offload_optimizer=true"), on_gpu=False)


class TestTime:
    def test_computing_time_is_operations_over_the_assumed_speed(self, paper):
        cluster = Cluster(GPUS["h100"], 8, mfu=0.5)
        update = average_update_time(paper, Layout(8, 2, 15, 240, False), cluster)
        assert update.compute == pytest.approx(240 * paper.updates[0].flops / (8 * 989.4e12 * 0.5))
        again = average_update_time(paper, Layout(8, 2, 15, 240, True), cluster)
        ratio = 1 + paper.updates[0].recomputed / paper.updates[0].flops
        assert again.compute == pytest.approx(ratio * update.compute)

    def test_in_fp32_no_tensor_core_computes(self):
        cluster, plan = Cluster(GPUS["h100"], 8), Layout(8, 2, 15, 240, False)
        bf16, fp32 = (
            average_update_time(
                workload(load_pretrain_config("configs/2p7b.json", [f"training.precision={p}"])), plan, cluster
            )
            for p in ("bf16", "fp32")
        )
        assert fp32.compute / bf16.compute == pytest.approx(989.4 / 66.9)

    def test_without_zero_every_gpu_holds_and_updates_all(self, paper):
        cluster = Cluster(GPUS["h100"], 8)
        none, first = (Layout(8, stage, 15, 240, False) for stage in (0, 1))
        assert planned_memory(paper, none).roles["model"].optimizer == pytest.approx(
            8 * planned_memory(paper, first).roles["model"].optimizer, rel=0.01
        )
        assert average_update_time(paper, none, cluster).optimizer == pytest.approx(
            8 * average_update_time(paper, first, cluster).optimizer
        )

    def test_one_gpu_sends_nothing(self, paper):
        update = average_update_time(paper, Layout(1, 2, 15, 240, False), Cluster(GPUS["h100"], 1))
        assert update.sent == update.communication == update.exposed == 0

    def test_stages_send_what_they_send(self, paper):
        """In units of the weights' bytes, for many GPUs: all-reduced and gathered at stages 1 and 2; at stage 3 reduced
        and scattered, and gathered for both passes except the last layers."""
        cluster, size = Cluster(GPUS["h100"], 240), 2 * paper.parameters["total"] * 239 / 240
        sent = {
            (stage, micro): average_update_time(paper, Layout(240, stage, micro, 480, False), cluster).sent / size
            for stage in (1, 2, 3)
            for micro in (1, 2)
        }
        assert sent[1, 2] == sent[1, 1] == sent[2, 2] == pytest.approx(3)
        assert sent[2, 1] == pytest.approx(2 * 2 + 1)
        gathers = 2 - 0.5e9 / paper.parameters["total"]
        assert sent[3, 2] == pytest.approx(1 + gathers, rel=1e-3)
        assert sent[3, 1] == pytest.approx(2 * (1 + gathers), rel=1e-3)

    def test_a_slower_network_counts_from_the_second_node(self, paper):
        def exposed(gpus, network):
            plan = Layout(gpus, 2, 240 // gpus, 240, False)
            return average_update_time(paper, plan, Cluster(GPUS["h100"], gpus, network=network)).communication

        assert exposed(8, 1e9) == exposed(8, 400e9)
        assert exposed(16, 1e9) > 10 * exposed(16, 400e9)

    def test_a_late_reduction_is_not_hidden(self, paper):
        """At stage 1 DeepSpeed reduces gradients that are summed in fp32 after the backward pass."""
        cluster = Cluster(GPUS["h100"], 8)
        late, hidden = (update_time(paper, paper.updates[0], Layout(8, s, 30, 240, False), cluster) for s in (1, 2))
        assert late.communication == hidden.communication and late.exposed > 2 * hidden.exposed

    def test_saves_are_shared_among_nodes(self, paper):
        plan = Layout(16, 2, 15, 240, False)
        assert save_seconds(paper, plan, Cluster(GPUS["h100"], 16)) == pytest.approx(
            16 * paper.parameters["total"] / 4e9
        )


class TestChoice:
    def test_numbers_that_divide(self, paper):
        assert micro_batches(240, 8) == [1, 2, 3, 5, 6, 10, 15, 30] and micro_batches(240, 64) == []
        assert gpu_counts_that_divide(240, Cluster(GPUS["h800"], 64)) == (48, 80)
        assert gpu_counts_that_divide(240, Cluster(GPUS["h800"], 1024)) == (240, 0)
        assert batches_that_divide(240, 64) == (192, 256) and batches_that_divide(240, 1024) == (0, 1024)
        assert batch_problem(paper, Cluster(GPUS["h800"], 8)) == ""
        assert batch_problem(paper, Cluster(GPUS["h800"], 64)) == (
            "training.global_batch 240 is not a multiple of 64 GPUs x micro_batch 15 = 960; 48 or 80 GPUs would divide "
            "it, and 64 a global_batch of 192 or 256"
        )
        assert batch_problem(paper, Cluster(GPUS["h800"], 48)).endswith("= 720; a micro_batch of 1 or 5 divides it")

    def test_of_equally_fast_layouts_the_one_with_the_largest_micro_batches_and_least_memory(self, paper):
        choice = recommend(paper, Cluster(GPUS["h100"], 8))
        assert (choice.layout.stage, choice.layout.micro_batch, choice.layout.checkpointing) == (2, 30, False)
        assert choice.reason.startswith("the fastest that fits, with ") and "ZeRO-1 takes " in choice.reason
        assert choice.memory.total <= usable_memory(GPUS["h100"])

    def test_checkpointing_where_nothing_else_fits(self, paper):
        choice = recommend(paper, Cluster(replace(GPUS["a100-40"], memory=12.5e9), 8))
        assert choice.layout.checkpointing and "without checkpointing it would need" in choice.reason

    def test_a_batch_that_does_not_divide_is_replaced_by_the_nearest(self, paper):
        assert recommend(paper, Cluster(GPUS["h800"], 64)).layout.global_batch == 256
        assert "fewer GPUs or a larger global batch" in recommend(paper, Cluster(GPUS["h800"], 64)).reason


def test_gpus_are_known_by_the_names_of_their_drivers():
    names = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA H100 NVL": "h100-nvl",
        "NVIDIA H200": "h200",
        "NVIDIA H800": "h800",
        "NVIDIA A100-SXM4-40GB": "a100-40",
        "NVIDIA A100-SXM4-80GB": "a100-80",
        "NVIDIA A800-SXM4-80GB": "a800",
        "NVIDIA GeForce RTX 4090": "4090",
        "NVIDIA L40S": "l40s",
        "NVIDIA B200": "b200",
        "AMD Instinct MI300X": "mi300x",
    }
    assert {name: find_gpu(name) for name in names} == {name: GPUS[key] for name, key in names.items()}
    assert sorted(names.values()) == sorted(GPUS)
    assert find_gpu("NVIDIA GeForce GTX 1080") is None


@pytest.fixture
def plan(monkeypatch, capsys):
    """Runs the command in this process -> its exit code and its output."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["plan.py", *map(str, arguments)])
        code = launch.plan.main()
        return code, *capsys.readouterr()

    return run


@pytest.mark.slow
@pytest.mark.parametrize("config", ["2p7b", "distill_2p7b"])
def test_on_the_command_line(plan, tmp_path, config):
    file = tmp_path / "plan.json"
    code, out, err = plan("--config", f"configs/{config}.json", "--gpus", 64, "--gpu", "H800", "--json", file)
    assert (code, err) == (0, "")
    found = json.loads(file.read_text())
    assert "on 64 x H800 80 GB (8 nodes of 8)" in out and "recommended" in out
    assert "48 or 80 GPUs would divide it" in out and found["batch"]["divides"] is False
    roles = ["student", "fake", "discriminator", "teacher"] if config == "distill_2p7b" else ["model"]
    assert [list(at["roles"]) for at in found["memory"]] == [roles] * 4
    assert [at["stage"] for at in found["memory"]] == [at["layout"]["stage"] for at in found["time"]] == [0, 1, 2, 3]
    for update in found["updates"]:
        assert update["flops_of_an_update"] == 240 * update["flops"]
        assert f"x {update['flops_of_an_update'] / 1e12:,.1f} TFLOP, {update['flops'] / 1e12:.3f} per sample" in out
    best = found["recommended"]
    assert best["gpu_hours"] == pytest.approx(24 * 64 * best["days"]) and best["memory"] <= found["usable_memory"]


def test_a_generation_is_planned(plan, tmp_path):
    """The clips of VGGSound's test set for three tasks, by the student and by its teacher."""
    found = {}
    for config in ("distill_2p7b", "2p7b"):
        file = tmp_path / f"{config}.json"
        more = ("--generate", 3 * 14931, "--other-seconds", 0.25, "--json", file)
        code, out, err = plan("--config", f"configs/{config}.json", "--gpus", 16, "--gpu", "h100", *more)
        assert (code, err) == (0, "") and "44,793 clips of" in out and "2,800 clips per GPU" in out
        found[config] = json.loads(file.read_text())
    few, many = found["distill_2p7b"], found["2p7b"]
    assert (few["steps"], few["passes"]) == (4, 4) and many["passes"] == 2 * many["steps"]
    assert many["flops_per_clip"] / few["flops_per_clip"] == many["passes"] / few["passes"]
    per_clip = few["flops_per_clip"] / (0.4 * 989e12) + 0.25
    assert few["gpu_hours"] == pytest.approx(44793 * per_clip / 3600, rel=1e-2)
    assert few["hours"] == pytest.approx(few["gpu_hours"] / 16)
    assert 2 * 2.3e9 < few["weights_bytes"] < 2 * 2.8e9 and 0 < few["disk_bytes"] < 1e12


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--gpus", 8, 16, "--gpu", "h100", "--generate", 10), "--generate: a plan of its own, for one number of"),
        (("--gpus", 8, "--gpu", "h100", "--generate", -1), "--generate -1 and --other-seconds 0: give 1 or more"),
        (("--gpus", 0, "--gpu", "h100"), "0 GPUs in nodes of 8: give at least 1 of both"),
        (("--gpus", 12, "--gpu", "h100"), "12 GPUs do not fill nodes of 8: give a multiple, or --per-node"),
        (("--gpus", 8, "--gpu", "h101"), "--gpu h101: not known; the table has h100, h200, h800"),
        (("--gpus", 8, "--gpu", "h100", "--mfu", 40), "an MFU of 40.0: it is above 0 and at most 1"),
        (("--gpus", 8, "--gpu", "h100", "--text-tokens", 500), "500 text tokens: give 1 to model.text.max_tokens, 24"),
        (
            ("--gpus", 8, "--gpu", "h100", "--samples-per-gpu", 4),
            "--samples-per-gpu 4: needs a table of several --gpus; for one give --set tr",
        ),
        (("--gpus", 8, "--gpu", "h100", "--set", "zero.stage=4"), "configs/tiny.json: zero.stage: 4 must be at most 3"),
    ],
)
def test_refusals(plan, arguments, said):
    code, out, err = plan("--config", "configs/tiny.json", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {said}") and err.count("\n") == 1


@pytest.mark.slow
def test_bytes_of_every_role_of_a_distillation_are_those_of_a_round(tmp_path):
    """The measurement asks for one round of a schedule that has no second one."""
    config = small_distill_config(None, "fake.zero.stage=1", "fake.precision=bf16", "discriminator.zero.stage=3")
    config = replace(config, training=replace(config.training, steps=5))
    (tmp_path / "config.json").write_text(json.dumps(strict.to_dict(config)))
    command = [*python(), "launch/plan.py", "--config", str(tmp_path / "config.json"), "--measure"]
    command += ["--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["planned"]) == ["student", "fake", "discriminator", "teacher"]
    assert found["planned"] == found["counted"] and "NOT" not in done.stdout
    trained = [held for name, held in found["counted"].items() if name != "teacher"]
    assert all(held["optimizer"] and held["gradients"] for held in trained)


GIB = 2**30


@pytest.mark.long
def test_resident_memory_grows_as_planned(tmp_path):
    """Two steps of 313 M parameters on one rank, two micro-batches each: the peak within 10 % of the plan's."""
    free = next(line for line in open("/proc/meminfo") if line.startswith("MemAvailable"))
    if int(free.split()[1]) * 1024 < 11 * GIB:
        pytest.skip("less than 11 GiB of memory are free")
    settings = [f"training.{setting}" for setting in ("compile=false", "global_batch=4", "micro_batch=2")]
    # Buffers that are filled, so that they are resident.
    settings.append("deepspeed.zero_optimization.reduce_bucket_size=50000000")
    found, said = measured_plan("single_gpu", settings, tmp_path)
    assert found["planned"] == found["counted"]
    assert found["measured_peak"] == pytest.approx(found["planned_peak"], rel=0.1), said
