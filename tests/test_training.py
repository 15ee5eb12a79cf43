"""That training is right: the same numbers at every ZeRO stage, for every number of ranks and after every resume.

Two launches, of one rank and of two, run all scenarios of training_ranks.py that are needed; the tests read what they
left. What takes longer is in a third, for `make test-long`.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

from audiox_turbo.models.audiox import AudioX
from audiox_turbo.trainer import checkpoint
from audiox_turbo.trainer.checkpoint import CheckpointError
from audiox_turbo.trainer.config import ScheduleConfig
from audiox_turbo.trainer.export import export
from audiox_turbo.trainer.rng import Purpose, sample_rng
from audiox_turbo.trainer.schedule import learning_rate
from tests.launching import free_port, run_ranks
from tests.small import ROOT, small_config, small_json
from tests.training_ranks import made_up

pytestmark = pytest.mark.slow

KINDS = ("weights", "exp_avg", "exp_avg_sq", "ema")
CURVE = (
    "training.steps=20",
    "optimizer.lr=3e-3",
    "optimizer.clip=1.8",
    "optimizer.weight_decay=0.1",
    "optimizer.eps=1e-6",
)
# The last block leaves this one without a gradient. Where nothing is sharded AdamW passes over it; under ZeRO its
# gradient counts as zero, and it decays. It changes nothing that the model says.
UNREAD = "backbone.blocks.1.condition.q_norm"


@dataclass(frozen=True)
class Item:
    """One scenario of a launch; `folder` is another's where it goes on with it."""

    name: str
    scenario: str
    overrides: Sequence[str] = ()
    folder: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)


class Launch:
    """What a launch left: results of the ranks and folders, by the items' names."""

    def __init__(self, ranks: int, scenes: Path, base: Path, items: Sequence[Item]) -> None:
        self.base, self.ranks = base, ranks
        self.folders = {item.name: base / (item.folder or item.name) for item in items}
        plan = [
            {
                "scenario": item.scenario,
                "folder": str(self.folders[item.name]),
                "scenes": str(scenes),
                "overrides": list(item.overrides),
                "arguments": item.arguments,
            }
            for item in items
        ]
        (base / f"plan_{ranks}.json").write_text(json.dumps(plan))
        run_ranks(ranks, "tests.training_ranks", str(base / f"plan_{ranks}.json"), timeout=1500)

    def results(self, name: str) -> list[dict[str, Any]]:
        return [json.loads((self.folders[name] / f"rank_{rank}.json").read_text()) for rank in range(self.ranks)]

    def checkpoint(self, name: str, step: int) -> Path:
        return self.folders[name] / "checkpoints" / f"step_{step:08d}"


def stage(number: int, *more: str) -> tuple[str, ...]:
    return (f"zero.stage={number}", *more)


def resumed(name: str, *overrides: str) -> list[Item]:
    """A run in one piece, and one that breaks off in the middle of an epoch and goes on from its checkpoint."""
    return [
        Item(f"{name} through", "whole", overrides),
        Item(f"{name} broken", "whole", overrides, arguments={"stop": 7}),
        Item(f"{name} resumed", "whole", overrides, folder=f"{name} broken", arguments={"resume": True}),
    ]


TWO_RANKS = [
    *[Item(f"curve {s}", "losses", stage(s, *CURVE)) for s in range(4)],
    Item("curve 2 accumulated", "losses", stage(2, *CURVE, "training.micro_batch=2")),
    *[Item(f"poison {s}", "poisoned", stage(s), arguments={"at": 2, "place": 1}) for s in range(4)],
    Item("poison bf16", "poisoned", stage(2, "training.precision=bf16"), arguments={"at": 2, "place": 1}),
    Item("poison accumulated", "poisoned", stage(2, "training.micro_batch=2"), arguments={"at": 2, "place": 3}),
    Item("poison first", "poisoned", stage(2), arguments={"at": 0, "place": 0}),
    Item("poison first 0", "poisoned", stage(0), arguments={"at": 0, "place": 0}),
    Item("poison on", "whole", stage(2, "training.max_skipped=2"), arguments={"poison": True}),
    *resumed("fp32", *stage(2)),
    *resumed("bf16", *stage(2, "training.precision=bf16")),
    Item("file too large", "file_too_large", stage(2)),
    Item("full disk", "full_disk", stage(2)),
    Item("reload 3", "reload", stage(3, *CURVE), arguments={"source": "curve 2"}),
    Item("reload 0", "reload", stage(0, *CURVE), arguments={"source": "curve 2"}),
]
OTHERS = [
    (number, precision)
    for number in range(4)
    for precision in ("fp32", "bf16")
    if number != 2  # which TWO_RANKS has
]
TWO_RANKS_LONG = [
    *[item for n, p in OTHERS for item in resumed(f"{n} {p}", *stage(n, f"training.precision={p}"))],
    *[
        Item(f"poison {n} bf16", "poisoned", stage(n, "training.precision=bf16"), arguments={"at": 2, "place": 1})
        for n in (0, 1, 3)
    ],
    *[
        Item(f"poison {n} accumulated", "poisoned", stage(n, "training.micro_batch=2"), arguments={"at": 2, "place": 3})
        for n in (0, 1, 3)
    ],
    *[Item(f"curve {n} accumulated", "losses", stage(n, *CURVE, "training.micro_batch=2")) for n in (0, 1, 3)],
    *[Item(f"curve {n} recomputed", "losses", stage(n, *CURVE, "training.checkpointing=true")) for n in (0, 2, 3)],
    Item("curve 2 offloaded", "losses", stage(2, *CURVE, "zero.offload=true")),
    Item("curve 2 compiled", "losses", stage(2, *CURVE, "training.compile=true")),
]
FOUR_RANKS = [Item(f"four {n}", "losses", stage(n, *CURVE, "training.micro_batch=2")) for n in range(4)]
ONE_RANK = [
    Item("one 0", "losses", stage(0, *CURVE, "training.micro_batch=8")),
    Item("one 0 accumulated", "losses", stage(0, *CURVE, "training.micro_batch=2")),
    Item("one 2", "losses", stage(2, *CURVE, "training.micro_batch=8")),
    Item("run", "whole", stage(2, "checkpoint.every=1", "checkpoint.keep=0", "training.precision=bf16")),
    Item("run again", "whole", stage(2, "training.precision=bf16")),
    Item("one from two", "reload", stage(2, *CURVE), arguments={"source": "curve 2", "steps": 3}),
    Item("one from three", "reload", stage(1, *CURVE), arguments={"source": "curve 3"}),
    Item("one from zero", "reload", stage(3, *CURVE), arguments={"source": "curve 0"}),
    Item("preview", "preview", stage(2)),
]


@pytest.fixture(scope="module")
def two(scenes, tmp_path_factory):
    return Launch(2, scenes, tmp_path_factory.mktemp("training"), TWO_RANKS)


@pytest.fixture(scope="module")
def two_long(scenes, tmp_path_factory):
    return Launch(2, scenes, tmp_path_factory.mktemp("training"), TWO_RANKS_LONG)


@pytest.fixture(scope="module")
def four(scenes, tmp_path_factory):
    return Launch(4, scenes, tmp_path_factory.mktemp("training"), FOUR_RANKS)


@pytest.fixture(scope="module")
def one(scenes, two):
    return Launch(1, scenes, two.base, ONE_RANK)


def state(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint that is trained, whole."""
    parts = {kind: checkpoint.full_tensors(folder, "model", kind) for kind in KINDS}
    return {f"{kind}/{name}": tensor for kind, tensors in parts.items() for name, tensor in tensors.items()}


def same(first: Path, second: Path, but: str = " ") -> None:
    """Bitwise, and counted alike."""
    a, b = state(first), state(second)
    differing = [name for name in a if but not in name and not torch.equal(a[name], b[name])]
    assert not differing, f"{len(differing)} of {len(a)} differ, first {differing[0]}"
    updates = [checkpoint.read_manifest(f)["roles"]["model"]["updates"] for f in (first, second)]
    assert updates[0] == updates[1]


@pytest.fixture(scope="module")
def plain():
    """Loss and gradient norm of every step, weights and average, of a loop that knows nothing of DeepSpeed, ranks,
    fragments or micro-batches."""
    config = small_config(None, *CURVE)
    torch.manual_seed(config.training.seed)
    model = AudioX(config.model)
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=config.optimizer.betas, eps=config.optimizer.eps, weight_decay=0.1
    )
    ema = {name: p.detach().clone() for name, p in model.named_parameters()}
    curve = []
    for step in range(20):
        batch = made_up(config, step, list(range(8)))
        rngs = [sample_rng(0, step, place, Purpose.NOISE) for place in range(8)]
        noise = torch.stack([torch.from_numpy(g.standard_normal((8, 16), dtype=np.float32)) for g in rngs])
        t = torch.tensor([g.random() for g in rngs])
        noisy = t[:, None, None] * noise + (1 - t[:, None, None]) * batch.latents
        velocity = model(noisy, t, *batch.conditions.tensors())
        loss = (velocity - (noise - batch.latents)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.8)
        warm = 1 - 0.9 ** (step + 1)
        rate = warm * 3e-3 * (1 + step / 1e6) ** -0.5 * (1.0 if step <= 15 else (20 - step) / 5)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        decay = min(0.9, (1 + step) / (10 + step))
        for name, p in model.named_parameters():
            ema[name] += (1 - decay) * (p.detach() - ema[name])
        curve.append([loss.item(), norm.item()])
    return np.array(curve), dict(model.named_parameters()), ema


class TestAgainstPlainTorch:
    def agrees(self, launch, name, plain):
        curve, weights, ema = plain
        for result in launch.results(name):
            found = np.array(result["curve"])
            np.testing.assert_allclose(found[:, 0], curve[:, 0], rtol=1e-4, err_msg="loss")
            np.testing.assert_allclose(found[:, 1], curve[:, 1], rtol=1e-3, err_msg="gradient norm")
        folder = launch.checkpoint(name, 20)
        for kind, expected in (("weights", weights), ("ema", ema)):
            for key, tensor in checkpoint.full_tensors(folder, "model", kind).items():
                if key != UNREAD:
                    torch.testing.assert_close(
                        tensor, expected[key].detach(), rtol=1e-3, atol=2e-5, msg=f"{kind} {key}"
                    )

    def test_the_loss_falls_and_gradients_are_clipped(self, plain):
        curve = plain[0]
        assert curve[-5:, 0].mean() < 0.7 * curve[:5, 0].mean()
        assert 3 < (curve[:, 1] > 1.8).sum() < 20

    @pytest.mark.parametrize("name", [i.name for i in TWO_RANKS if i.scenario == "losses"])
    def test_two_ranks(self, two, plain, name):
        self.agrees(two, name, plain)

    @pytest.mark.long
    @pytest.mark.parametrize("name", [i.name for i in TWO_RANKS_LONG if i.scenario == "losses"])
    def test_two_ranks_in_other_ways(self, two_long, plain, name):
        self.agrees(two_long, name, plain)

    @pytest.mark.long
    @pytest.mark.parametrize("name", [i.name for i in FOUR_RANKS])
    def test_four_ranks(self, four, plain, name):
        self.agrees(four, name, plain)

    @pytest.mark.parametrize("name", [i.name for i in ONE_RANK if i.scenario == "losses"])
    def test_one_rank(self, one, plain, name):
        self.agrees(one, name, plain)


class TestResume:
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_stopped_and_resumed_is_uninterrupted(self, two, precision):
        assert two.results(f"{precision} resumed") == [{}, {}], "nothing went wrong"
        same(two.checkpoint(f"{precision} through", 12), two.checkpoint(f"{precision} resumed", 12))
        same(two.checkpoint(f"{precision} through", 8), two.checkpoint(f"{precision} resumed", 8))

    @pytest.mark.long
    @pytest.mark.parametrize(("number", "precision"), OTHERS)
    def test_at_every_other_stage(self, two_long, number, precision):
        name = f"{number} {precision}"
        assert two_long.results(f"{name} resumed") == [{}, {}], "nothing went wrong"
        same(two_long.checkpoint(f"{name} through", 12), two_long.checkpoint(f"{name} resumed", 12))

    @pytest.mark.long
    def test_a_killed_launch_goes_on_as_if_nothing_had_been(self, scenes, tmp_path):
        """launch/pretrain.py under torchrun: one run in peace, one that is killed and started again with --resume."""
        (tmp_path / "run.json").write_text(json.dumps(small_json(scenes, "training.steps=60", "zero.stage=2")))
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
        command += ["launch/pretrain.py", "--config", str(tmp_path / "run.json"), "--output"]

        def finish(output: Path, *more: str) -> str:
            done = subprocess.run([*command, str(output), *more], cwd=ROOT, capture_output=True, text=True, timeout=300)
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
        same(*(tmp_path / name / "checkpoints" / "step_00000060" for name in ("peace", "killed")))
        lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 61))

    def test_every_step_is_logged_once(self, two):
        lines = (two.folders["fp32 resumed"] / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in lines]
        assert [row["step"] for row in rows] == list(range(1, 13))
        through = (two.folders["fp32 through"] / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["loss"] for line in through] == [row["loss"] for row in rows]

    def test_two_runs_from_one_seed_are_bitwise_the_same(self, one):
        same(one.checkpoint("run", 12), one.checkpoint("run again", 12))

    def test_another_number_of_ranks_and_another_stage(self, two, one):
        for launch, name, source in (
            (two, "reload 3", "curve 2"),
            (two, "reload 0", "curve 2"),
            (one, "one from three", "curve 3"),
            (one, "one from zero", "curve 0"),
        ):
            assert launch.results(name)[0]["start"] == 20
            same(two.checkpoint(source, 20), launch.checkpoint(name, 20))

    def test_training_goes_on_after_a_change_of_ranks(self, one, two):
        """Three more steps on one rank from the checkpoint of two, against the same state in plain AdamW."""
        result = one.results("one from two")[0]
        config = small_config(None, *CURVE)
        source = two.checkpoint("curve 2", 20)
        model = AudioX(config.model)
        model.load_state_dict(checkpoint.full_tensors(source, "model", "weights"))
        optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)
        moments = {kind: checkpoint.full_tensors(source, "model", kind) for kind in ("exp_avg", "exp_avg_sq")}
        for name, p in model.named_parameters():
            optimizer.state[p] = {"step": torch.tensor(20.0)} | {kind: m[name] for kind, m in moments.items()}
        for step, found in zip((20, 21, 22), result["curve"], strict=True):
            batch = made_up(config, step, list(range(8)))
            rngs = [sample_rng(0, step, place, Purpose.NOISE) for place in range(8)]
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


class TestNonFinite:
    @pytest.mark.parametrize("name", [i.name for i in TWO_RANKS if i.scenario == "poisoned"])
    def test_no_rank_changes_in_a_step_that_is_not_finite(self, two, name):
        at = next(i.arguments["at"] for i in TWO_RANKS if i.name == name)
        self.unchanged_at(two.results(name), at)

    @pytest.mark.long
    @pytest.mark.parametrize("name", [i.name for i in TWO_RANKS_LONG if i.scenario == "poisoned"])
    def test_in_other_ways(self, two_long, name):
        self.unchanged_at(two_long.results(name), 2)

    def unchanged_at(self, results, at):
        for step in range(6):
            for kind in (*KINDS, "updates"):  # before the step and after it
                stayed = [result["rows"][step][1][kind] == result["rows"][step + 1][1][kind] for result in results]
                assert all(stayed) if step == at else not all(stayed), (step, kind, stayed)
        for result in results:
            rows = result["rows"][1:]
            assert [row[0] for row in rows] == [step != at for step in range(6)]
            assert [row[1]["skipped"] for row in rows] == [str(float(step >= at)) for step in range(6)]
            assert math.isfinite(result["grad_norm"])

    def test_too_many_in_a_row_stop_the_run(self, two):
        for result in two.results("poison on"):
            assert "2 steps in a row, to step 4, had a loss or gradient that is not finite" in result["error"]
        lines = (two.folders["poison on"] / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["loss"] is None for line in lines] == [False, False, False, True]
        assert [f.name for f in checkpoint.complete(two.folders["poison on"])] == ["step_00000004"]


class TestMovingAverage:
    def test_it_is_that_of_the_gathered_weights(self, one, scenes):
        torch.manual_seed(0)
        model = AudioX(small_config(scenes).model).to(torch.bfloat16)  # as DeepSpeed makes its masters
        ema = {name: p.detach().double() for name, p in model.named_parameters()}
        for step in range(1, 13):
            folder = one.checkpoint("run", step)
            weights = checkpoint.full_tensors(folder, "model", "weights")
            decay = min(0.9, step / (9 + step))
            for name, tensor in checkpoint.full_tensors(folder, "model", "ema").items():
                ema[name] = decay * ema[name] + (1 - decay) * weights[name].double()
                torch.testing.assert_close(tensor.double(), ema[name], rtol=1e-5, atol=1e-7)

    def test_sound_in_the_middle_of_training_changes_nothing(self, one):
        result = one.results("preview")[0]
        assert result["same"] and result["shape"] == [2, 1, 16384]
        assert np.isfinite(result["latents"]).all()


class TestExport:
    @pytest.mark.parametrize("kind", ["ema", "weights"])
    def test_it_is_the_gathered_average_or_the_raw_weights(self, one, tmp_path, kind):
        for step in (None, 5):
            out = tmp_path / f"weights {step}"
            source = export(one.folders["run"], out, kind=kind, step=step)
            assert source == one.checkpoint("run", step or 12)
            expected = checkpoint.full_tensors(source, "model", kind)
            loaded = AudioX.from_pretrained(out)
            found = loaded.state_dict()
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
            assert loaded.config == small_config().model

    def test_both_differ(self, one):
        folder = one.checkpoint("run", 12)
        name = "backbone.latent_out.weight"
        weights, ema = (checkpoint.full_tensors(folder, "model", kind)[name] for kind in ("weights", "ema"))
        assert not torch.equal(weights, ema)

    def test_bf16(self, one, tmp_path):
        export(one.folders["run"], tmp_path / "weights", dtype="bf16")
        expected = checkpoint.full_tensors(one.checkpoint("run", 12), "model", "ema")
        found = AudioX.from_pretrained(tmp_path / "weights").state_dict()
        assert all(torch.equal(found[name], expected[name].bfloat16().float()) for name in expected)

    def test_on_the_command_line(self, one, tmp_path):
        command = [sys.executable, "launch/convert.py", str(one.folders["run"]), "--out", str(tmp_path / "w"), "--raw"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert "raw weights of" in done.stdout and "step_00000012" in done.stdout
        again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
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
            assert checkpoint.verify(two.checkpoint("file too large", step)) == ""


@pytest.fixture
def group():
    """A process group of this process alone."""
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
        assert checkpoint.newest(run, heard.append) == run / "checkpoints" / "step_00000008"
        assert len(heard) == 1 and heard[0].startswith("damaged checkpoint passed over: ")
        with pytest.raises(CheckpointError, match=message):
            raise CheckpointError(heard[0])
        with pytest.raises(CheckpointError, match=message + r".*Older checkpoints .*: step_00000008, step_00000004"):
            export(run, run / "weights")

    def test_any_flipped_byte_of_a_manifest_is_found(self, run, group):
        """But in its white space, which says nothing."""
        file = run / "checkpoints" / "step_00000012" / "manifest.json"
        text = file.read_bytes()
        for at in np.random.default_rng(0).integers(0, len(text), 300):
            flip(file, int(at))
            if bytes([text[at]]).strip() and file.read_bytes()[at : at + 1].strip():
                assert checkpoint.verify(file.parent), f"byte {at}"
            file.write_bytes(text)

    def test_all_damaged_is_no_new_beginning(self, run, group):
        for folder in checkpoint.complete(run):
            os.truncate(folder / "model" / "rank_00000.safetensors", 10)
        heard: list[str] = []
        with pytest.raises(CheckpointError, match="all 3 checkpoints are damaged; restore one, or remove"):
            checkpoint.newest(run, heard.append)
        assert len(heard) == 3

    def test_none_at_all(self, tmp_path, group):
        assert checkpoint.newest(tmp_path, pytest.fail) is None

    def test_an_unfinished_one_does_not_count(self, run, group):
        folders = run / "checkpoints"
        (folders / "step_00000012").rename(folders / "step_00000012.partial")
        assert checkpoint.newest(run, pytest.fail) == folders / "step_00000008"

    def test_another_model(self, two):
        shapes = checkpoint.read_manifest(two.checkpoint("fp32 through", 12))["roles"]["model"]["shapes"]
        ours = {name: tuple(shape) for name, shape in shapes.items()}
        checkpoint.check_shapes("there", shapes, ours)
        with pytest.raises(CheckpointError, match=r"latent_in\.bias is \[32\] there and \[48\] here"):
            checkpoint.check_shapes("there", shapes, ours | {"backbone.latent_in.bias": (48,)})
        with pytest.raises(CheckpointError, match=r"there: x is absent there and \[3\] here"):
            checkpoint.check_shapes("there", shapes, ours | {"x": (3,)})


class TestSchedule:
    """lr(s) = (1 - warmup^(s+1)) · max(final, base·(1 + s/inv_gamma)^(-power)) (section VI-A)."""

    @pytest.mark.parametrize("step", [0, 1, 10, 500, 99_999])
    def test_the_papers(self, step):
        expected = (1 - 0.99 ** (step + 1)) * 1e-5 / math.sqrt(1 + step / 1e6)
        assert learning_rate(ScheduleConfig(), 1e-5, step, 100_000) == pytest.approx(expected, rel=1e-12)

    def test_it_ends_no_lower_than_the_final_rate(self):
        config = ScheduleConfig(warmup=0.0, inv_gamma=1.0, power=1.0, final=1e-4)
        assert learning_rate(config, 1e-3, 4, 100) == pytest.approx(2e-4)
        assert learning_rate(config, 1e-3, 99, 100) == pytest.approx(1e-4)

    def test_a_cooldown_falls_to_zero_at_the_end(self):
        config = ScheduleConfig(warmup=0.0, inv_gamma=1e12, cooldown=0.25)
        rates = [learning_rate(config, 1.0, step, 100) for step in range(101)]
        assert rates[:76] == pytest.approx([1.0] * 76)
        assert rates[76:] == pytest.approx([(100 - step) / 25 for step in range(76, 101)])

    def test_a_run_uses_it(self, two):
        config = small_config()
        lines = (two.folders["fp32 through"] / "metrics.jsonl").read_text().splitlines()
        expected = [learning_rate(config.schedule, config.optimizer.lr, step, 12) for step in range(12)]
        assert [json.loads(line)["lr"] for line in lines] == pytest.approx(expected)
