"""The benchmarks run, and count what they say. Their measurements mean nothing here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from audiox_trainer.kernels.ops import OPS
from audiox_trainer.models import strict
from audiox_trainer.models.networks import build_network
from audiox_trainer.trainer.benchmarks import data, distill, memory, sample, train
from audiox_trainer.trainer.benchmarks.released.plain_reading import PlainReading
from audiox_trainer.trainer.benchmarks.train import READING
from audiox_trainer.trainer.cost.passes import Gradient, Pass
from audiox_trainer.trainer.engine import kernel_selection
from tests.helpers.released_weights import (
    SIZES,
    random_tensor,
    released_config,
    released_distill_config,
    save_released,
)
from tests.helpers.small_config import ROOT, small_config, small_distill_config
from tests.helpers.warm_python import python

pytestmark = pytest.mark.slow

TRITON = "kernels.swiglu=triton"
STUDENT_TRAINED, FAKE_TRAINED, HEAD_TRAINED = (
    Pass(role, Gradient.WEIGHTS, samples=1 + (role == "discriminator")).title
    for role in ("student", "fake", "discriminator")
)
GUIDED, TRUNK = Pass("teacher", samples=2).title, Pass("teacher", blocks=1).title
TRUNK_BACKWARD = Pass("teacher", Gradient.LATENTS, blocks=1).title
HEAD_BACKWARD = Pass("discriminator", Gradient.LATENTS).title


def run_bench(folder: Path, kind: str, config: object, *arguments: str) -> subprocess.CompletedProcess:
    (folder / "config.json").write_text(json.dumps(strict.to_dict(config)))
    command = [*python(), "launch/bench.py", kind, "--config", str(folder / "config.json"), *arguments]
    return subprocess.run(
        [*command, "--out", str(folder / "out.json")], cwd=ROOT, capture_output=True, text=True, timeout=600
    )


def test_training_steps_are_compared_with_a_plain_loop(tmp_path, scenes):
    done = run_bench(tmp_path, "train", small_config(scenes), "--rounds", "2", "--inner", "1", "--profile")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    for rows in (result["profiles"]["deepspeed"], result["profiles"]["plain"]):
        assert "aten::addmm" in {row["name"] for row in rows} and rows[0]["ms"] >= rows[-1]["ms"] > 0
        # Each row by the same whole, of which the rows that were left out are a part.
        assert rows[0]["ms"] / rows[0]["share"] == pytest.approx(rows[-1]["ms"] / rows[-1]["share"])
        assert 0 < sum(row["share"] for row in rows) <= 1 + 1e-9
    assert "a step, deepspeed: where its time goes" in done.stdout
    rows = {row["variant"]: row for row in result["rows"]}
    assert rows["plain"]["ratio_to_plain"] == 1 and rows["deepspeed"]["samples_per_s"] > 0
    assert rows["products alone"]["samples_per_s"] > rows["plain"]["samples_per_s"]
    assert "samples/s" in done.stdout and "forward of a sample, GFLOP: latent stream" in done.stdout
    assert result["kernels"] == dict.fromkeys(OPS, "reference") and "kernels: joint_attention reference" in done.stdout
    assert f"torch {result['host']['torch']}" in done.stdout and "commit" in result["host"]
    # What is counted by arithmetic, less the products that have no gradient to give: those at features and positions.
    assert 0.85 * result["training_flops"] < result["product_flops"] < 1.02 * result["training_flops"]


def test_comparisons_of_ranks_are_compared_with_steps_without(tmp_path, scenes):
    config = small_config(scenes, "checks.weights_every=20")
    done = run_bench(tmp_path, "checks", config, "--rounds", "2", "--inner", "2")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    shares = {row["variant"]: row.get("share_of_steps") for row in result["rows"]}
    assert shares == {
        "a step": None,
        "times measured": 5 / 100,
        "weights compared": 1 / 20,
        "a micro-batch repeated": 1 / 1000,
    }
    assert result["cost"] == sum(row.get("cost", 0) for row in result["rows"])
    assert "of the time" in done.stdout and "a micro-batch repeated" in done.stdout


def test_a_round_is_compared_with_its_parts(tmp_path, scenes):
    config = small_distill_config(scenes, "updates.student=2")
    done = run_bench(tmp_path, "distill", config, "--rounds", "1", "--text-lengths", "8", "16")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    called = {row["part"]: row["calls"] for row in result["rows"]}
    # Two micro-batches an update: two updates of the student, one of the fake model, one of the discriminator.
    assert called[STUDENT_TRAINED] == called[GUIDED] == called[TRUNK_BACKWARD] == called[HEAD_BACKWARD] == 4
    assert called[FAKE_TRAINED] == called[HEAD_TRAINED] == 2 and called[TRUNK] == 4
    assert [called[f"{name} optimizer"] for name in ("student", "fake", "discriminator")] == [2, 1, 1]
    assert result["ratio"] == pytest.approx(result["round_s"] / result["parts_s"])
    assert result["compiled_versions"] == [0, 0] and "0 more after the warm-up" in done.stdout  # it is not compiled
    with pytest.raises(ValueError, match=r"--text-lengths \[8, 25\]: between 1 and model\.text\.max_tokens, 24"):
        distill.measure(config, 1, text_lengths=[8, 25])


@pytest.mark.long
def test_every_operation_is_measured_and_the_table_can_be_followed(tmp_path, scenes):
    done = run_bench(tmp_path, "kernels", small_config(scenes), "--rounds", "1", "--inner", "1", "--dtype", "fp32")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    rows = kernel_selection.read_table(tmp_path / "out.json")
    assert {row["op"] for row in rows} == set(OPS) == {row["op"] for row in result["alternatives"]}
    for row in rows + result["alternatives"]:
        assert 0 < row["forward_low_ms"] <= row["forward_ms"] <= row["forward_high_ms"]
        assert row["backward_of_limit"] > 0


@pytest.mark.long
def test_latents_are_made_in_three_ways(tmp_path, scenes):
    done = run_bench(tmp_path, "sample", small_config(scenes), "--rounds", "1", "--dtype", "fp32", "--steps", "2")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["steps"], row["nfe"]) for row in rows] == [(4, 4)] * 3 + [(2, 4)] * 3
    assert [row["way"] for row in rows[:3]] == ["plain", "ours", "ours, compiled"]
    assert rows[0]["times_plain"] == 1 and all(row["ms"] > 0 and row["off"] < 1e-4 for row in rows)
    assert "kernels: joint_attention reference" in done.stdout and "forward of a sample, GFLOP" in done.stdout


def test_a_way_that_makes_other_latents_is_left_out(capsys):
    latents = torch.randn(2, 5, 3)
    ways = {"plain": lambda: latents, "same": lambda: latents.clone(), "other": lambda: 1.01 * latents}
    ways["nothing"] = lambda: latents * float("nan")
    off = sample._differences(ways, torch.float32)
    assert list(ways) == ["plain", "same"] and off["same"] == 0 and off["other"] == pytest.approx(0.01, rel=1e-3)
    assert "nothing: left out" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what is said without a GPU")
def test_the_operations_of_sampling_are_the_configurations():
    config = small_config(None, TRITON)
    with pytest.raises(ValueError, match=r"kernels\.swiglu: 'triton' needs an NVIDIA GPU"):
        sample.measure(config.model, [config.sampling], 1, torch.float32, 1, config.kernels)


def test_reading_is_measured_at_the_schema_of_a_model(tmp_path, scenes):
    made = ("--samples", "32", "--folder", str(tmp_path), "--train", "5")  # more than may be read already
    done = run_bench(tmp_path, "data", small_config(scenes), "--rounds", "1", *made)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert 0 <= result["steps"]["waited_share"] < 1 and result["steps"]["processor_share"] > 0
    assert [row["variant"] for row in result["rows"]] == ["batches", "records", "bytes alone"]
    for row in result["rows"]:
        assert row["mb_per_s"] == pytest.approx(row["samples_per_s"] * result["bytes_per_sample"] / 1e6)
    assert not list(tmp_path.glob("bench-data-*"))


def test_checkpoints_are_measured_asynchronous_and_waited_for(tmp_path, scenes):
    done = run_bench(tmp_path, "save", small_config(scenes), "--rounds", "2", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for turn in json.loads((tmp_path / "out.json").read_text())["turns"]:
        assert turn["steps"] >= 1 and 0 < turn["still"] <= turn["async"]
        assert turn["async"] == pytest.approx(turn["ratio"] * turn["waiting"])
    assert "of it standing still, s" in done.stdout
    assert not list(tmp_path.glob("bench-save-*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what is said without a GPU")
@pytest.mark.parametrize(
    "measure",
    [
        lambda: train.measure(small_config(None, TRITON), 1, 1),
        lambda: data.measure(small_config(None, TRITON), 0, 1),
        lambda: distill.measure(small_distill_config(None, TRITON), 1),
        lambda: memory.measure_memory(small_config(None, TRITON)),
    ],
    ids=["train", "data", "distill", "memory"],
)
def test_operations_that_cannot_run_here_are_refused(measure):
    with pytest.raises(ValueError, match=r"kernels\.swiglu: 'triton' needs an NVIDIA GPU"):
        measure()


@pytest.mark.parametrize("wrong", [("--rounds", "0"), ("--inner", "-1"), ("--batch", "many")])
def test_counts_below_one_are_refused(tmp_path, wrong):
    refused = run_bench(tmp_path, "kernels", small_config(), *wrong)
    assert refused.returncode == 2 and f"{wrong[0]}: {wrong[1]!r} is not a whole number above 0" in refused.stderr


def test_fp8_without_its_library_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    for measure in (
        lambda: train.measure(small_config(None, "training.fp8=true"), 1, 1),
        lambda: distill.measure(small_distill_config(None, "training.fp8=true"), 1),
        lambda: memory.measure_memory(small_config(None, "training.fp8=true")),
    ):
        with pytest.raises(ValueError, match="needs torchao"):
            measure()


@pytest.mark.long
def test_steps_of_other_batches_and_rounds_without_parts(tmp_path, scenes):
    done = run_bench(tmp_path, "train", small_config(scenes), "--rounds", "1", "--only", "deepspeed", "--batches", "2")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["variant"], row["samples"]) for row in rows] == [("deepspeed", 8), ("deepspeed, batch 2", 2)]
    with pytest.raises(ValueError, match=r"--batches 5: between 1 and training\.micro_batch, 4"):
        train.measure(small_config(), 1, 1, batches=[5])
    done = run_bench(tmp_path, "distill", small_distill_config(scenes), "--rounds", "1", "--no-parts")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["round_s"] > 0 and result["mfu"] > 0 and "ratio" not in result
    assert "TFLOP counted" in done.stdout and "kernels: " in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("kind", ["train", "sample", "distill", "data"])
def test_the_released_network_is_measured_too(tmp_path, kind):
    weights = save_released(tmp_path / "released")
    config = released_config(weights, "training.micro_batch=4")
    arguments = ["--rounds", "1"]
    if kind == "distill":
        config = released_distill_config(weights, "updates.student=2", "distillation.discriminator_blocks=2")
    elif kind == "sample":
        arguments += ["--dtype", "fp32", "--steps", "2"]
    done = run_bench(tmp_path, kind, config, *arguments)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    if kind == "sample":
        assert all(row["off"] < 1e-4 for row in result["rows"]) and len(result["rows"]) == 8
        assert [row["times_reading"] == 1 for row in result["rows"]] == [
            row["way"] == READING for row in result["rows"]
        ]
    else:
        assert result["rows"]
    if kind == "train":
        rows = {row["variant"]: row for row in result["rows"]}
        assert rows[READING]["ratio_to_reading"] == 1 and rows["deepspeed"]["ratio_to_reading"] > 0
        assert "x reading" in done.stdout


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_plain_reading_is_the_released_network(compiled):
    """Its velocity and every gradient; with videos, texts and prompts in some samples, and in none."""
    network = build_network(SIZES.model)
    network.load_state_dict({name: random_tensor(name, tuple(x.shape)) for name, x in network.state_dict().items()})
    generator, video_rows = torch.Generator().manual_seed(0), SIZES.model.video_rows
    shapes = ((3, 36, 8), (3, video_rows, 32), (3, 32, 8), (3, 16, 32))
    z, video, audio, text = (torch.randn(shape, generator=generator) for shape in shapes)
    video[1], audio[0], audio[2, 5:] = 0, 0, 0
    inputs = (z, torch.tensor([1.0, 0.3, 0.0]), video, audio, text, torch.tensor([16, 0, 5]))
    results = []
    for model in (network, PlainReading(network, compiled)):
        network.zero_grad()
        out = model(*inputs)
        out.square().mean().backward()
        results.append([out.detach(), *(p.grad.clone() for p in network.parameters())])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=2e-6 * float(plain.abs().max() + 1))
