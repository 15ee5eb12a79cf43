"""Training is correct: at every ZeRO stage and on every number of ranks its numbers are those of plain PyTorch.

Two launches, of one rank and of two, run all scenarios of training_scenarios.py that are needed; the tests read what
they left. What takes longer is in a third, for `make test-long`.
"""

import json
import math

import numpy as np
import pytest
import torch

from audiox_trainer.models.audiox import AudioX
from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.core.config import ScheduleConfig, load_pretrain_config
from audiox_trainer.trainer.core.rng import Purpose, sample_rng
from audiox_trainer.trainer.training.learning_rate import learning_rate
from audiox_trainer.trainer.training.previews import Previews
from tests.helpers.scenario_results import CURVE, FOUR_RANKS, KINDS, ONE_RANK, TWO_RANKS, TWO_RANKS_LONG, UNREAD
from tests.helpers.scenarios import made_up
from tests.helpers.small_config import ROOT, small_config

pytestmark = pytest.mark.slow


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
        rngs = [sample_rng(0, step, index, Purpose.NOISE) for index in range(8)]
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
    def disagreements(self, launch, name, plain) -> list[str]:
        curve, weights, ema = plain
        found = []
        for rank, result in enumerate(launch.results(name)):
            loss, norm = np.array(result["curve"]).T
            found += [] if np.allclose(loss, curve[:, 0], rtol=1e-4, atol=0) else [f"rank {rank}: loss {loss}"]
            found += [] if np.allclose(norm, curve[:, 1], rtol=1e-3, atol=0) else [f"rank {rank}: norm {norm}"]
        folder = launch.checkpoint(name, 20)
        for kind, expected in (("weights", weights), ("ema", ema)):
            for key, tensor in load.full_tensors(folder, "model", kind).items():
                if key != UNREAD and not torch.allclose(tensor, expected[key].detach(), rtol=1e-3, atol=2e-5):
                    found.append(f"{kind} {key}")
        return found

    def test_the_loss_falls_and_gradients_are_clipped(self, plain):
        curve = plain[0]
        assert curve[-5:, 0].mean() < 0.7 * curve[:5, 0].mean()
        assert 3 < (curve[:, 1] > 1.8).sum() < 20

    @pytest.mark.parametrize("name", [i.name for i in TWO_RANKS if i.scenario == "losses"])
    def test_two_ranks(self, two, plain, name):
        assert self.disagreements(two, name, plain) == []

    @pytest.mark.long
    @pytest.mark.parametrize("name", [i.name for i in TWO_RANKS_LONG if i.scenario == "losses"])
    def test_two_ranks_in_other_ways(self, two_long, plain, name):
        assert self.disagreements(two_long, name, plain) == []

    @pytest.mark.long
    @pytest.mark.parametrize("name", [i.name for i in FOUR_RANKS if i.scenario == "losses"])
    def test_four_ranks(self, four, plain, name):
        assert self.disagreements(four, name, plain) == []

    @pytest.mark.parametrize("name", [i.name for i in ONE_RANK if i.scenario == "losses"])
    def test_one_rank(self, one, plain, name):
        assert self.disagreements(one, name, plain) == []


class TestNonFinite:
    @pytest.mark.parametrize("name", [i.name for i in TWO_RANKS if i.scenario == "poisoned"])
    def test_no_rank_changes_in_a_step_that_is_not_finite(self, two, name):
        at = next(i.arguments["at"] for i in TWO_RANKS if i.name == name)
        assert self.changed_wrongly(two.results(name), at) == []

    @pytest.mark.long
    @pytest.mark.parametrize("name", [i.name for i in TWO_RANKS_LONG if i.scenario == "poisoned"])
    def test_in_other_ways(self, two_long, name):
        assert self.changed_wrongly(two_long.results(name), 2) == []

    def changed_wrongly(self, results, at) -> list[tuple[int, str]]:
        """The steps whose state changed although the step was not finite, or stayed although it was."""
        wrong = []
        for step in range(6):
            for kind in (*KINDS, "updates"):  # before the step and after it
                stayed = [result["rows"][step][1][kind] == result["rows"][step + 1][1][kind] for result in results]
                if all(stayed) != (step == at):
                    wrong.append((step, kind))
        for result in results:
            rows = result["rows"][1:]
            wrong += [(s, "applied") for s, row in enumerate(rows) if row[0] != (s != at)]
            wrong += [(s, "skipped") for s, row in enumerate(rows) if row[1]["skipped"] != str(float(s >= at))]
            if not math.isfinite(result["grad_norm"]):
                wrong.append((6, "grad_norm"))
        return wrong

    def test_too_many_in_a_row_stop_the_run(self, two):
        for result in two.results("poison on"):
            assert "2 steps in a row, to step 4, had a loss or gradient that is not finite" in result["error"]
        lines = (two.folders["poison on"] / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["loss"] is None for line in lines] == [False, False, False, True]
        assert [f.name for f in load.list_checkpoints(two.folders["poison on"])] == ["step_00000004"]


class TestMovingAverage:
    def test_it_is_that_of_the_gathered_weights(self, one, scenes):
        torch.manual_seed(0)
        model = AudioX(small_config(scenes).model).to(torch.bfloat16)  # as DeepSpeed makes its masters
        ema = {name: p.detach().double() for name, p in model.named_parameters()}
        for step in range(1, 13):
            folder = one.checkpoint("run", step)
            weights = load.full_tensors(folder, "model", "weights")
            decay = min(0.9, step / (9 + step))
            for name, tensor in load.full_tensors(folder, "model", "ema").items():
                ema[name] = decay * ema[name] + (1 - decay) * weights[name].double()
                torch.testing.assert_close(tensor.double(), ema[name], rtol=1e-5, atol=1e-7)

    def test_sound_in_the_middle_of_training_changes_nothing(self, one):
        result = one.results("preview")[0]
        assert result["same"] and result["shape"] == [2, 1, 16384]
        assert np.isfinite(result["waves"]).all()


@pytest.mark.parametrize("part", ["text", "codec"])
def test_sounds_whose_weights_are_missing_are_refused_before_training(part):
    words = '{"kind": "words", "dim": 768, "max_tokens": 128, "pad_to_multiple_of": 32}'
    own = ["model.text.weights=nowhere"] if part == "text" else [f"model.text={words}", "model.codec.weights=nowhere"]
    with pytest.raises(ValueError, match=rf"model\.{part}\.weights: 'nowhere'.*set logging\.preview_every to 0"):
        Previews(load_pretrain_config(ROOT / "configs/2p7b.json", own)).load()
    Previews(load_pretrain_config(ROOT / "configs/2p7b.json", [*own, "logging.preview_every=0"])).load()


class TestSchedule:
    """lr(s) = (1 - warmup^(s+1)) · max(final, base·(1 + s/inv_gamma)^(-power)) (section VI-A)."""

    @pytest.mark.parametrize("step", [0, 1, 10, 500, 99_999])
    def test_the_papers(self, step):
        expected = (1 - 0.99 ** (step + 1)) * 1e-5 / math.sqrt(1 + step / 1e6)
        assert learning_rate(ScheduleConfig(), 1e-5, step, 100_000) == pytest.approx(expected, rel=1e-12)

    def test_it_ends_no_lower_than_the_final_rate(self):
        config = ScheduleConfig(warmup=0.0, inv_gamma=1.0, power=1.0, final_lr=1e-4)
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


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_host_waits_for_the_device_only_where_the_ranks_agree(two, stage):
    """Forward and backward are handed over whole. Before it steps the optimizer has to know whether any rank's gradient
    is not finite: DeepSpeed asks that, and the norm, of a device that is then idle."""
    for found in two.results(f"waits {stage}"):
        assert found["before"] == []
        assert 1 <= len(found["stepping"]) <= 3


def test_no_collective_operation_ends_before_the_watchdog_speaks(one):
    """DeepSpeed's process groups have torch's timeout by themselves: ten minutes with NCCL, where compiling may take
    thirty."""
    result = one.results("process groups")[0]
    assert len(result["seconds"]) > 1
    assert min(result["seconds"]) >= 2 * max(result["phases"])
