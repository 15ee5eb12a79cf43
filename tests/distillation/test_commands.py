"""Pairs, distillation, conversion and sound as a user types them, on random weights."""

import json
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from audiox_trainer.models import strict
from audiox_trainer.models.adapter_files import apply_adapters
from audiox_trainer.models.encoders.build import build_text_encoder
from audiox_trainer.models.sampler import Guidance, euler, shifted_timesteps
from audiox_trainer.trainer.checkpoint.verify import verify
from audiox_trainer.trainer.checkpoint.weights_folder import load_weights
from audiox_trainer.trainer.core.cli import ExitCode
from audiox_trainer.trainer.cost.role_bytes import readable
from audiox_trainer.trainer.data.distill_draws import DistillDraws
from audiox_trainer.trainer.data.pairs import PairReader
from audiox_trainer.trainer.distillation.teacher import Teacher
from tests.distillation.conftest import ADAPTERS, ROLES
from tests.helpers.distillation_scenarios import teacher
from tests.helpers.launch_ranks import launch_ranks
from tests.helpers.read_records import read_records
from tests.helpers.scenario_results import KINDS, differing
from tests.helpers.small_config import ROOT, small_distill_config
from tests.helpers.warm_python import python

pytestmark = pytest.mark.slow


class Commands:
    """A folder with a configuration and a teacher, and the commands that run in it."""

    def __init__(self, folder, scenes):
        self.folder = folder
        self.config = small_distill_config(
            scenes,
            "training.steps=2",
            "updates.student=2",
            "sampling.sampler=euler",
            "distillation.guidance_interval=[0.5, 1.0]",
            f"warm_start.pairs={folder}/pairs",
            "warm_start.updates=3",
            "checkpoint.every=1",
            "checkpoint.keep_last=0",
            "logging.preview_every=1000",
            'logging.preview_prompts=["a bell"]',
        )
        (folder / "config.json").write_text(json.dumps(strict.to_dict(self.config)))
        teacher(self.config).save_pretrained(folder / "teacher")

    def run(self, script, *arguments):
        command = [*python(), f"launch/{script}.py", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)

    def with_teacher(self, script, *arguments):
        common = ("--config", self.folder / "config.json", "--teacher", self.folder / "teacher")
        return self.run(script, *common, *arguments)


@pytest.fixture(scope="module")
def commands(scenes, tmp_path_factory):
    made = Commands(tmp_path_factory.mktemp("commands"), scenes)
    early = made.with_teacher("distill", "--output", made.folder / "early")
    done = made.with_teacher("pairs", "--out", made.folder / "pairs", "--count", 16)
    assert done.returncode == 0, done.stderr
    assert early.returncode == 1 and "pairs.json is missing: this is no folder of launch/pairs.py" in early.stderr
    return made


def test_pairs_are_noise_and_its_endpoint(commands):
    """The teacher's ODE, solved again, leads from each pair's noise to its latents."""
    config = commands.config
    reader = PairReader(config, build_text_encoder(config.model.text), 0, 1)

    class Whole:
        module, dtype = load_weights(commands.folder / "teacher"), torch.float32

    guidance = Guidance(3.0, (0.5, 1.0))
    assert config.distillation.guidance == guidance
    asked = Teacher(Whole, build_text_encoder(config.model.text), guidance, 1)
    for _, batch in zip(range(2), reader.batches(0), strict=False):
        mask = batch.given_mask.unsqueeze(-1)
        with torch.no_grad():
            ends = euler(asked.velocity(batch.conditions), batch.noise, shifted_timesteps(3), batch.latents, mask)
        torch.testing.assert_close(ends, batch.latents, rtol=2e-3, atol=2e-2)  # float16 in the shards
        assert not torch.allclose(batch.noise, batch.latents, atol=0.5)


def test_a_part_that_is_lost_is_refused_and_made_again(commands):
    (part,) = commands.folder.glob("pairs/part_*")
    before = {file.name: file.read_bytes() for file in part.iterdir()}
    shutil.rmtree(part)
    done = commands.with_teacher("distill", "--output", commands.folder / "lost")
    assert done.returncode == 1 and f"1 of 1 parts are missing, the first is {part.name}" in done.stderr
    assert commands.with_teacher("pairs", "--out", commands.folder / "pairs", "--count", 16).returncode == 0
    assert {file.name: file.read_bytes() for file in part.iterdir()} == before


def test_a_student_without_endpoints_needs_no_pairs(commands):
    renoise = ("--set", "sampling.sampler=renoise", "--set", "warm_start.pairs=")
    done = commands.with_teacher("pairs", "--out", commands.folder / "needless", *renoise)
    assert done.returncode == 1 and "a student that regresses on no endpoint needs no pairs" in done.stderr


def test_pairs_of_another_kind_are_not_mixed(commands):
    arguments = ("--out", commands.folder / "pairs", "--count", 16, "--set", "distillation.teacher_guidance=5")
    done = commands.with_teacher("pairs", *arguments)
    assert done.returncode == 1
    assert "was started with guidance 3.0, now it is 5.0" in done.stderr


def test_pairs_are_no_data(commands):
    (part,) = commands.folder.glob("pairs/part_*")
    done = commands.with_teacher("distill", "--output", commands.folder / "fed", "--set", f"data.streams.0.path={part}")
    assert done.returncode == 1 and "data.streams.0.path: " in done.stderr and "warm_start.pairs" in done.stderr
    assert not (commands.folder / "fed").exists()


def test_pairs_of_another_guidance_start_no_student(commands):
    done = commands.with_teacher(
        "distill", "--output", commands.folder / "other", "--set", "distillation.guidance_interval=[0.2, 1.0]"
    )
    assert done.returncode == 1
    assert "was made with guidance_interval (0.5, 1.0), now it is (0.2, 1.0)" in done.stderr
    assert not (commands.folder / "other").exists()


def test_from_pairs_to_sound(commands):
    out, weights = commands.folder / "turbo", commands.folder / "weights"
    done = commands.with_teacher("distill", "--output", out)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [("warm_start" in line, "dm" in line) for line in lines[:6]] == 3 * [(True, False)] + 2 * [
        (False, False)
    ] + [(False, True)]
    trained = [{key.split("/")[1] for key in line if key.startswith("grad_norm/")} for line in lines]
    assert trained[0] == {"student"} and trained[-1] == {"student", "fake", "discriminator"}
    assert all(line[key] > 0 for line in lines for key in line if key.startswith("grad_norm/"))
    for role in (*ROLES, "teacher"):  # what was planned is said before, what is counted stands in the log
        counted = int(lines[-1][f"bytes/{role}"])
        assert re.search(rf"^{role}: {re.escape(readable(counted))} per rank \(weights ", done.stdout, re.MULTILINE)
    assert lines[-1]["bytes/teacher"] == 4 * sum(p.numel() for p in teacher(commands.config).parameters())
    assert commands.run("convert", out, "--out", weights).returncode == 0
    assert load_weights(weights).sampling == commands.config.sampling
    for folder in (commands.folder / "pairs", out, weights):
        verify(folder, lambda line: None)
    made = commands.run("generate", "--weights", weights, "--text", "three bells", "--out", out / "bells.wav")
    assert made.returncode == 0, made.stderr
    sound, _ = soundfile.read(out / "bells.wav")
    assert len(sound) == 16384 and np.isfinite(sound).all()

    heard = EventAccumulator(str(out / "tensorboard"))
    heard.Reload()
    kinds = ("teacher 50", "teacher 4", "student 4")
    assert sorted(heard.Tags()["audio"]) == sorted(f"0 a bell/{kind}" for kind in kinds)
    assert len(heard.Tags()["images"]) == 3

    other = commands.folder / "other"
    stirred = teacher(commands.config)
    with torch.no_grad():
        stirred.backbone.latent_out.bias.add_(1)
    stirred.save_pretrained(other)
    resumed = commands.run(
        "distill", "--config", commands.folder / "config.json", "--teacher", other, "--output", out, "--resume"
    )
    assert resumed.returncode == 1 and "was started with another teacher" in resumed.stderr


def test_a_student_of_adapters_is_merged_or_kept(commands):
    """It is made of the teacher, by rank 3 and a scale of 2; with its sampling it is weights like any other's."""
    run, base = commands.folder / "adapted", commands.folder / "teacher"
    sets = ("warm_start.pairs=", "warm_start.updates=1", "sampling.sampler=renoise", *ADAPTERS)
    done = commands.with_teacher("distill", "--output", run, *(part for one in sets for part in ("--set", one)))
    assert done.returncode == 0, done.stderr
    assert f"begins from {base} (xxh3 " in done.stdout
    begin = ("--student", run, "--set", "warm_start.pairs=", "--set", "warm_start.updates=0")
    again = commands.with_teacher("distill", "--output", commands.folder / "on", *begin)
    assert again.returncode == 1 and "has trained adapters; make weights of it by" in again.stderr
    for out, more in (("adapter", ()), ("merged", ("--merge",))):
        done = commands.run("convert", run, "--out", run / out, *more)
        assert done.returncode == 0, done.stderr
    merged, plain = load_weights(run / "merged"), load_weights(base)
    kept = load_file(run / "adapter" / "adapter_model.safetensors")
    layers = {name.rpartition(".lora_A")[0].removeprefix("base_model.model.") for name in kept if ".lora_A" in name}
    assert len(layers) == 5 and "conditioner.text" in layers  # in the last block the conditions have no queries
    for name, weight in plain.state_dict().items():
        layer, found = name.removesuffix(".weight"), merged.state_dict()[name]
        if layer in layers:
            a, b = (kept[f"base_model.model.{layer}.lora_{which}.weight"] for which in "AB")
            assert b.any() and len(a) == 3
            torch.testing.assert_close(found, weight + 2 * b @ a, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(found, weight)
    assert merged.sampling.sampler == "renoise" and merged.sampling.steps == 4
    assert adapted(base, run / "adapter") == pytest.approx(adapted(run / "merged"), abs=1e-6)


def adapted(weights, *adapters):
    """A sum of the weights, with adapters added."""
    model = load_weights(weights)
    apply_adapters(model, [(folder, 1.0) for folder in adapters])
    return sum(p.double().sum().item() for p in model.parameters())


def test_a_run_broken_off_among_the_pairs_ends_as_if_it_had_not(commands):
    through, broken = commands.folder / "turbo", commands.folder / "broken"
    shutil.copytree(through, broken)
    (broken / "latest.json").unlink()
    steps = sorted((broken / "checkpoints").iterdir())
    assert [step.name for step in steps[:3]] == [f"step_{n:08d}" for n in (1, 2, 3)]
    for step in steps[2:]:
        shutil.rmtree(step)
    done = commands.with_teacher("distill", "--output", broken, "--resume")
    assert done.returncode == 0 and "at step 2" in done.stdout, done.stderr
    for role in ("student", "fake", "discriminator"):
        kinds = KINDS if role == "student" else [kind for kind in KINDS if kind != "ema"]
        last = [folder / "checkpoints" / steps[-1].name for folder in (through, broken)]
        assert differing(*last, role, kinds) == []


def test_two_ranks_make_the_pairs_of_one_in_parts(commands, scenes):
    """17 global batches are five parts. Each sample has the same conditions, noise and endpoint."""
    made = {}
    for ranks in (1, 2):
        out = commands.folder / f"pairs_{ranks}"
        arguments = ("--config", commands.folder / "config.json", "--teacher", commands.folder / "teacher")
        launch_ranks(ranks, "launch.pairs", *map(str, (*arguments, "--out", out, "--count", 17 * 8)))
        folders = sorted(folder.name for folder in out.glob("part_*"))
        assert folders == [f"part_{part:05d}_of_00005_rank_{rank:05d}" for part in range(5) for rank in range(ranks)]
        dim = commands.config.model.video.dim
        records = [record for name in folders for record in read_records(out / name, dim)]
        made[ranks] = {tuple(record.annotation["noise"]): record for record in records}
        assert len(records) == len(made[ranks]) == 17 * 8
    assert made[1].keys() == made[2].keys()
    for origin, record in made[1].items():
        other = made[2][origin]
        assert record.annotation["condition"] == other.annotation["condition"]
        np.testing.assert_allclose(record.latent_mean, other.latent_mean, rtol=2e-3, atol=2e-3)  # float16


def test_pairs_that_were_asked_to_stop_are_gone_on_with(commands):
    """17 global batches are five parts. The request comes within the first, which is finished; nothing is lost."""
    out = commands.folder / "asked"
    arguments = ("--config", commands.folder / "config.json", "--teacher", commands.folder / "teacher", "--out", out)
    command = [*python(), "launch/pairs.py", *map(str, arguments), "--count", str(17 * 8)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(out.glob("*part_*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR2)
    _, said = process.communicate(timeout=600)
    assert process.returncode == ExitCode.STOPPED and "asked to stop: 1 of 5 parts are made; run it again" in said, said
    assert [folder.name for folder in out.glob("*part_*")] == ["part_00000_of_00005_rank_00000"]
    assert commands.with_teacher("pairs", "--out", out, "--count", 17 * 8).returncode == 0
    whole = commands.folder / "pairs_1"  # of the test above
    for folder in whole.glob("part_*"):
        for file in folder.iterdir():
            assert file.read_bytes() == (out / folder.name / file.name).read_bytes()


def test_the_first_noise_is_the_rollouts(commands):
    reader = PairReader(commands.config, build_text_encoder(commands.config.model.text), 0, 1)
    batch = next(reader.batches(0))
    noise = DistillDraws(3, torch.device("cpu")).rollout(5, batch, 2)
    for i, index in enumerate(batch.indices.tolist()):
        assert torch.equal(noise[0, i], DistillDraws.first_noise(3, 5, index, tuple(batch.latents.shape[1:])))
