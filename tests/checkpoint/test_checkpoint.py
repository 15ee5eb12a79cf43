"""Checkpoints: exact resuming, conversion, a full disk, damage."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

from audiox_trainer.models.audiox import AudioX
from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.checkpoint.convert_run import convert_run
from audiox_trainer.trainer.checkpoint.load import CheckpointError
from audiox_trainer.trainer.core.cli import ExitCode
from audiox_trainer.trainer.core.hardware import free_port
from audiox_trainer.trainer.core.rng import Purpose, sample_rng
from audiox_trainer.trainer.training.learning_rate import learning_rate
from tests.helpers.scenario_results import CURVE, OTHERS, differing
from tests.helpers.scenarios import made_up
from tests.helpers.small_config import ROOT, small_config, small_json
from tests.helpers.warm_python import python

pytestmark = pytest.mark.slow


class TestResume:
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_stopped_and_resumed_is_uninterrupted(self, two, precision):
        assert two.results(f"{precision} resumed") == [{}, {}], "nothing went wrong"
        assert differing(two.checkpoint(f"{precision} through", 12), two.checkpoint(f"{precision} resumed", 12)) == []
        assert differing(two.checkpoint(f"{precision} through", 8), two.checkpoint(f"{precision} resumed", 8)) == []

    def test_asked_to_stop_saves_the_step_it_is_in(self, two):
        """One rank is asked in step 4, then both in step 8. Nothing else makes the run save there."""
        said = [f"asked to stop: step {step} of 12 is saved; continue with --resume" for step in (5, 9)]
        ends = [{"said": words, "code": ExitCode.STOPPED} for words in said]
        assert two.results("asked") == 2 * [{"ends": [*ends, {}]}]
        assert differing(two.checkpoint("fp32 through", 12), two.checkpoint("asked", 12)) == []
        lines = (two.folders["asked"] / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 13)), "no step twice, and none left out"

    @pytest.mark.long
    @pytest.mark.parametrize(("number", "precision"), OTHERS)
    def test_at_every_other_stage(self, two_long, number, precision):
        name = f"{number} {precision}"
        assert two_long.results(f"{name} resumed") == [{}, {}], "nothing went wrong"
        assert differing(two_long.checkpoint(f"{name} through", 12), two_long.checkpoint(f"{name} resumed", 12)) == []

    @pytest.mark.long
    def test_a_killed_launch_goes_on_as_if_nothing_had_been(self, scenes, tmp_path):
        """launch/pretrain.py under torchrun: one undisturbed run, and one that is killed and started again with
        --resume."""
        (tmp_path / "run.json").write_text(json.dumps(small_json(scenes, "training.steps=60", "zero.stage=2")))
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
        command += ["launch/pretrain.py", "--no-self-test", "--config", str(tmp_path / "run.json"), "--output"]

        def finish(output: Path, *more: str) -> str:
            done = subprocess.run([*command, str(output), *more], cwd=ROOT, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stderr
            return done.stdout

        finish(tmp_path / "peace")
        with subprocess.Popen([*command, str(tmp_path / "killed")], cwd=ROOT) as process:
            while not (tmp_path / "killed" / "checkpoints" / "step_00000008").exists() and process.poll() is None:
                time.sleep(0.01)
            for part in (*psutil.Process(process.pid).children(recursive=True), process):
                part.kill()
        said = finish(tmp_path / "killed", "--resume")
        step = int(re.findall(r"resumed from .* at step (\d+)", said)[0])
        assert 8 <= step < 60
        assert differing(*(tmp_path / name / "checkpoints" / "step_00000060" for name in ("peace", "killed"))) == []
        lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 61))

    def test_every_step_is_logged_once(self, two):
        lines = (two.folders["fp32 resumed"] / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in lines]
        assert [row["step"] for row in rows] == list(range(1, 13))
        through = (two.folders["fp32 through"] / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["loss"] for line in through] == [row["loss"] for row in rows]

    def test_two_runs_from_one_seed_are_bitwise_the_same(self, one):
        assert differing(one.checkpoint("run", 12), one.checkpoint("run again", 12)) == []

    @pytest.mark.long
    @pytest.mark.parametrize(("name", "source"), [("four from two", "curve 2"), ("four from zero", "curve 0")])
    def test_more_ranks_and_another_stage(self, two, four, name, source):
        assert differing(two.checkpoint(source, 20), four.checkpoint(name, 20)) == []

    def test_another_number_of_ranks_and_another_stage(self, two, one):
        for launch, name, source in (
            (two, "reload 3", "curve 2"),
            (two, "reload 0", "curve 2"),
            (one, "one from three", "curve 3"),
            (one, "one from zero", "curve 0"),
        ):
            assert launch.results(name)[0]["start"] == 20
            assert differing(two.checkpoint(source, 20), launch.checkpoint(name, 20)) == []

    def test_training_goes_on_after_a_change_of_ranks(self, one, two):
        """Three more steps on one rank from the checkpoint of two, against the same state in plain AdamW."""
        result = one.results("one from two")[0]
        config = small_config(None, *CURVE)
        source = two.checkpoint("curve 2", 20)
        model = AudioX(config.model)
        model.load_state_dict(load.full_tensors(source, "model", "weights"))
        optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)
        moments = {kind: load.full_tensors(source, "model", kind) for kind in ("exp_avg", "exp_avg_sq")}
        for name, p in model.named_parameters():
            optimizer.state[p] = {"step": torch.tensor(20.0)} | {kind: m[name] for kind, m in moments.items()}
        for step, found in zip((20, 21, 22), result["curve"], strict=True):
            batch = made_up(config, step, list(range(8)))
            rngs = [sample_rng(0, step, index, Purpose.NOISE) for index in range(8)]
            noise = torch.stack([torch.from_numpy(g.standard_normal((8, 16), dtype=np.float32)) for g in rngs])
            t = torch.tensor([g.random() for g in rngs])
            noisy = t[:, None, None] * noise + (1 - t[:, None, None]) * batch.latents
            loss = (model(noisy, t, *batch.conditions.tensors()) - (noise - batch.latents)).square().mean()
            assert found == pytest.approx(loss.item(), rel=1e-5)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.8)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config.schedule, config.optimizer.lr, step, 20)
            optimizer.step()


class TestBesideTraining:
    def test_steps_are_made_while_it_is_written_and_it_holds_the_state_from_before(self, two):
        for rank in two.results("async_save"):
            assert rank["seen"][3] == []
            assert rank["seen"][5] == rank["seen"][6] == ["step_00000004.partial"]
            assert "step_00000004" in rank["seen"][8]
        for step in (4, 8, 12):
            assert load.find_fault(two.checkpoint("async_save", step)) == ""
            assert differing(two.checkpoint("fp32 through", step), two.checkpoint("async_save", step)) == []

    def test_where_a_rank_cannot_write_all_say_so_and_nothing_half_written_stays(self, two):
        for rank in two.results("async_save fails"):
            assert re.fullmatch(r"could not save .*step_00000004: rank 1: no space left", rank["error"])
            assert 7 <= len(rank["seen"]) <= 8, "it is heard of when rank 1 has tried"
            assert rank["left"] == []


class TestExport:
    @pytest.mark.parametrize("kind", ["ema", "weights"])
    def test_it_is_the_gathered_average_or_the_raw_weights(self, one, tmp_path, kind):
        for step in (None, 5):
            out = tmp_path / f"weights {step}"
            source = convert_run(one.folders["run"], out, kind=kind, step=step)
            assert source == one.checkpoint("run", step or 12)
            expected = load.full_tensors(source, "model", kind)
            loaded = AudioX.from_pretrained(out)
            found = loaded.state_dict()
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
            assert loaded.config == small_config().model

    def test_both_differ(self, one):
        folder = one.checkpoint("run", 12)
        name = "backbone.latent_out.weight"
        weights, ema = (load.full_tensors(folder, "model", kind)[name] for kind in ("weights", "ema"))
        assert not torch.equal(weights, ema)

    def test_bf16(self, one, tmp_path):
        convert_run(one.folders["run"], tmp_path / "weights", dtype="bf16")
        expected = load.full_tensors(one.checkpoint("run", 12), "model", "ema")
        found = AudioX.from_pretrained(tmp_path / "weights").state_dict()
        assert all(torch.equal(found[name], expected[name].bfloat16().float()) for name in expected)

    def test_on_the_command_line(self, one, tmp_path):
        command = [*python(), "launch/convert.py", str(one.folders["run"]), "--out", str(tmp_path / "w"), "--raw"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert "raw weights of" in done.stdout and "step_00000012" in done.stdout
        again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert again.returncode == 1
        assert (
            again.stderr
            == f"error: {tmp_path}/w exists already and is left as it is; remove it or choose another --out\n"
        )


class TestFullDisk:
    @pytest.mark.parametrize("kind", ["file too large", "full disk"])
    def test_every_rank_hears_of_it_and_what_was_there_stays(self, two, kind):
        for result in two.results(kind):
            if result["found"] is None:
                pytest.skip("no file system may be mounted here")
            first, failed, last = result["found"]
            assert first == ["saved", ["step_00000001"]]
            assert re.match(r"could not save .*step_00000002: rank \d: .*", failed[0]), failed[0]
            assert failed[1] == ["step_00000001"], "nothing half written stays"
            assert last == ["saved", ["step_00000001", "step_00000003"]]

    def test_the_rank_that_could_not_write_is_named(self, two):
        for result in two.results("file too large"):
            assert "step_00000002: rank 1: " in result["found"][1][0]
        for step in (1, 3):
            assert load.find_fault(two.checkpoint("file too large", step)) == ""


@pytest.fixture
def group():
    """A process group with one rank, this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


RANK = Path("model") / "rank_00001.safetensors"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda f: os.truncate(f / RANK, 5000), r"rank_00001\.safetensors has 5000 bytes, its manifest says"),
    "flipped": (lambda f: flip(f / RANK, -100), r"rank_00001\.safetensors has changed"),
    "flipped header": (lambda f: flip(f / RANK, 20), r"rank_00001\.safetensors has changed"),
    "deleted": (lambda f: (f / RANK).unlink(), r"rank_00001\.safetensors is missing"),
    "manifest deleted": (lambda f: (f / "manifest.json").unlink(), r"manifest\.json is missing"),
    "manifest truncated": (lambda f: os.truncate(f / "manifest.json", 99), r"manifest\.json is damaged"),
    "manifest emptied": (lambda f: os.truncate(f / "manifest.json", 0), r"manifest\.json is damaged"),
    "manifest a list": (lambda f: (f / "manifest.json").write_text("[]"), r"manifest\.json is damaged"),
    "manifest changed": (
        lambda f: (f / "manifest.json").write_text(
            (f / "manifest.json").read_text().replace('"step": 12', '"step": 10')
        ),
        r"manifest\.json has changed",
    ),
}


class TestDamage:
    @pytest.fixture
    def run(self, two, tmp_path):
        """A copy of a run with checkpoints of steps 4, 8 and 12."""
        return shutil.copytree(two.folders["fp32 through"], tmp_path / "run")

    @pytest.mark.parametrize("kind", DAMAGE)
    def test_the_one_before_is_taken(self, run, group, kind):
        damage, message = DAMAGE[kind]
        newest = run / "checkpoints" / "step_00000012"
        damage(newest)
        heard: list[str] = []
        assert load.newest_intact(run, heard.append) == run / "checkpoints" / "step_00000008"
        assert len(heard) == 1 and heard[0].startswith("skipped a damaged checkpoint: ")
        with pytest.raises(CheckpointError, match=message):
            raise CheckpointError(heard[0])
        with pytest.raises(CheckpointError, match=message + r".*Older checkpoints .*: step_00000008, step_00000004"):
            convert_run(run, run / "weights")

    def test_any_flipped_byte_of_a_manifest_is_found(self, run, group):
        """Except in its white space, which has no meaning."""
        file = run / "checkpoints" / "step_00000012" / "manifest.json"
        text = file.read_bytes()
        for at in np.random.default_rng(0).integers(0, len(text), 300):
            flip(file, int(at))
            if bytes([text[at]]).strip() and file.read_bytes()[at : at + 1].strip():
                assert load.find_fault(file.parent), f"byte {at}"
            file.write_bytes(text)

    def test_all_damaged_is_no_new_beginning(self, run, group):
        for folder in load.list_checkpoints(run):
            os.truncate(folder / "model" / "rank_00000.safetensors", 10)
        heard: list[str] = []
        with pytest.raises(CheckpointError, match="all 3 checkpoints are damaged; restore one, or start again"):
            load.newest_intact(run, heard.append)
        assert len(heard) == 3

    def test_none_at_all(self, tmp_path, group):
        assert load.newest_intact(tmp_path, pytest.fail) is None

    def test_an_unfinished_one_does_not_count(self, run, group):
        folders = run / "checkpoints"
        (folders / "step_00000012").rename(folders / "step_00000012.partial")
        (run / load.LATEST).write_text('{"step": 8}')  # it is written last
        assert load.newest_intact(run, pytest.fail) == folders / "step_00000008"

    def test_what_was_saved_last_is_gone(self, run, group):
        shutil.rmtree(run / "checkpoints" / "step_00000012")
        said = []
        assert load.newest_intact(run, said.append) == run / "checkpoints" / "step_00000008"
        assert len(said) == 1 and "step 12 was saved last, and its checkpoint is gone" in said[0]

    def test_another_model(self, two):
        shapes = load.read_manifest(two.checkpoint("fp32 through", 12))["roles"]["model"]["shapes"]
        ours = {name: tuple(shape) for name, shape in shapes.items()}
        load.check_shapes("there", shapes, ours)
        with pytest.raises(CheckpointError, match=r"latent_in\.bias is \[32\] there and \[48\] here"):
            load.check_shapes("there", shapes, ours | {"backbone.latent_in.bias": (48,)})
        with pytest.raises(CheckpointError, match=r"there: x is absent there and \[3\] here"):
            load.check_shapes("there", shapes, ours | {"x": (3,)})
