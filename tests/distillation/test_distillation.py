"""That a distillation is right: the roles do not disturb one another, the numbers are those of plain PyTorch at every
ZeRO stage, and an interruption changes nothing."""

import copy
import itertools
import json
import re

import numpy as np
import pytest
import torch

from audiox_turbo.models.discriminator import DiscriminatorHead
from audiox_turbo.models.encoders.build import build_text_encoder
from audiox_turbo.trainer.command import ExitCode
from audiox_turbo.trainer.distill import Distillation
from audiox_turbo.trainer.distill_flops import update_flops
from audiox_turbo.trainer.rng import Purpose, sample_rng
from audiox_turbo.trainer.schedule import Phase
from tests.distillation.conftest import BF16, ENDS, ROLES
from tests.distillation_ranks import teacher
from tests.ranks import made_up
from tests.small import small_distill_config
from tests.training.launches import KINDS, Item, Launch, differing

pytestmark = pytest.mark.slow

TRAINED = {
    "warm_start": "student",
    "student": "student",
    "fake_warm_up": "fake",
    "fake": "fake",
    "discriminator": "discriminator",
}
USUAL = ("dmd", "one", "renoise")
READINGS = {
    "rounds eq10": ("eq10", "one", "renoise"),
    "rounds stopped": ("eq10_sg_teacher", "kl", "renoise"),
    "rounds euler": ("dmd", "one", "euler", 3e-3),
    "rounds rolled": ("dmd", "one", "euler", 1e-3, True),
}
LOW = ["rounds bf16 1", "rounds bf16 2", "rounds bf16 3"]
ROUNDS = ["rounds 1", "rounds 2", "rounds 3", "rounds accumulated", "rounds sharded", "rounds partitioned"]


class Plain:
    """The distillation of `small_distill_config` in one process, written down from section V: no engine, no rank, no
    surrogate for the student's gradient."""

    TIMES = (1.0, 0.75, 0.5, 0.25)

    def __init__(self, loss: str, weight: str, sampler: str, warm_lr: float = 1e-3, rolled: bool = False) -> None:
        self.loss, self.weight, self.sampler, self.warm_lr, self.rolled = loss, weight, sampler, warm_lr, rolled
        self.config = small_distill_config()
        self.teacher = teacher(self.config).requires_grad_(False)
        self.student, self.fake = (copy.deepcopy(self.teacher).requires_grad_(True) for _ in range(2))
        torch.manual_seed(self.config.training.seed)
        self.head = DiscriminatorHead(self.config.model.backbone.width)
        models = {"student": self.student, "fake": self.fake, "discriminator": self.head}
        self.optimizers = {n: torch.optim.AdamW(m.parameters(), weight_decay=1e-3) for n, m in models.items()}
        self.models, self.turns = models, dict.fromkeys(models, 0)
        self.nothing = build_text_encoder(self.config.model.text)([""])

    def run(self) -> list[dict[str, float]]:
        phases = ["warm_start"] + 2 * ["fake_warm_up"] + 2 * (5 * ["student"] + ["fake", "discriminator"])
        return [self.update(u, phase) for u, phase in enumerate(phases)]

    def update(self, u: int, phase: str) -> dict[str, float]:
        batch, name = made_up(self.config, u, list(range(8))), TRAINED[phase]
        k = int(sample_rng(0, u, 0, Purpose.INTERVAL).choice(4, p=[0.25] * 4))
        losses = {"warm_start": self.regression, "student": self.matching, "discriminator": self.hinge}
        objective, values = losses.get(phase, self.samples)(u, batch, k)
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        parameters = list(self.models[name].parameters())
        for p, g in zip(parameters, torch.autograd.grad(objective, parameters, allow_unused=True), strict=True):
            p.grad = torch.zeros_like(p) if g is None else g
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        lr = self.warm_lr if phase == "warm_start" else 1e-3
        for group in optimizer.param_groups:
            group["lr"] = (1 - 0.5 ** (self.turns[name] + 1)) * lr * (1 + self.turns[name] / 1e6) ** -0.5
        optimizer.step()
        self.turns[name] += 1
        return values

    def draws(self, u, batch, purpose, count, low=0.0, high=1.0):
        rngs = [sample_rng(0, u, place, purpose) for place in range(8)]
        level = torch.tensor([rng.uniform(low, high) for rng in rngs], dtype=torch.float32)
        noise = [rng.standard_normal((count, *batch.latents.shape[1:]), dtype=np.float32) for rng in rngs]
        return torch.from_numpy(np.stack(noise, 1)), level[:, None, None]

    def velocity(self, model, z, t, batch, **options):
        return model(z, torch.as_tensor(t).flatten().expand(8), *batch.conditions.tensors(), **options)

    def guided(self, z, t, batch):
        conditions = batch.conditions
        text = torch.zeros_like(conditions.text)
        text[:, :1] = self.nothing[0][:, :1]
        nothing = torch.zeros_like(conditions.video), torch.zeros_like(conditions.audio), text, torch.ones(8).long()
        without = self.teacher(z, torch.as_tensor(t).flatten().expand(8), *nothing)
        return without + 3.0 * (self.velocity(self.teacher, z, t, batch) - without)

    def estimate(self, z, t, batch):
        clean = z - t * self.velocity(self.student, z, t, batch)
        return torch.where(batch.given[:, :, None] > 0, batch.latents, clean)

    def sample(self, u, batch, k):
        """ẑ_0 at step k; only the last step keeps its gradient."""
        return self.estimate(self.rollout(u, batch, k), self.TIMES[k], batch)

    @torch.no_grad()
    def rollout(self, u, batch, k):
        noise, _ = self.draws(u, batch, Purpose.ROLLOUT, k + 1)
        z, given = noise[0], batch.given[:, :, None] > 0
        for i, (t, to) in enumerate(itertools.pairwise(self.TIMES[: k + 1])):
            if self.sampler == "euler":
                z = z + (to - t) * self.velocity(self.student, z, t, batch)
                z = torch.where(given, to * noise[0] + (1 - to) * batch.latents, z)
            else:
                z = to * noise[i + 1] + (1 - to) * self.estimate(z, t, batch)
        return z

    def score(self, z, t, batch):
        return self.head(self.velocity(self.teacher, z, t, batch, n_blocks=1))

    def regression(self, u, batch, k):
        noise, _ = self.draws(u, batch, Purpose.ROLLOUT, k + 1)
        z, given = noise[0], batch.given[:, :, None] > 0
        with torch.no_grad():
            for t, to in ((1.0, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0.0)):
                z = z + (to - t) * self.guided(z, t, batch)
                z = torch.where(given, to * noise[0] + (1 - to) * batch.latents, z)
        t = self.TIMES[k]
        own = noise[0 if self.sampler == "euler" else k]
        at = self.rollout(u, batch, k) if self.rolled else t * own + (1 - t) * z
        v = self.velocity(self.student, at, t, batch)
        loss = (v - (at - z) / t).square().mean()
        return loss, {"warm_start": loss.item()}

    def matching(self, u, batch, k):
        z0 = self.sample(u, batch, k)
        noise, tau = self.draws(u, batch, Purpose.PERTURBATION, 1, 0.02, 0.98)
        z_tau = tau * noise[0] + (1 - tau) * z0
        v_real, v_fake = self.guided(z_tau, tau, batch), self.velocity(self.fake, z_tau, tau, batch)
        if self.loss == "dmd":
            real, fake = ((z_tau - tau * v).detach() for v in (v_real, v_fake))
            g = (fake - real) / (z0 - real).abs().mean((1, 2), keepdim=True)
            errors = 0.5 * (z0 - (z0 - g).detach()).square()
        else:
            errors = (v_fake - (v_real if self.loss == "eq10" else v_real.detach())).square()
        matching = (errors * ((1 - tau) ** 2 / tau if self.weight == "kl" else 1)).mean()
        noise, t = self.draws(u, batch, Purpose.CRITIC, 2, 0.0, 0.2)
        adversarial = -self.score(t * noise[0] + (1 - t) * z0, t, batch).mean()
        return matching + 0.5 * adversarial, {"dm": matching.item(), "adversarial": adversarial.item()}

    def samples(self, u, batch, k):
        z0 = self.sample(u, batch, k).detach()
        noise, tau = self.draws(u, batch, Purpose.PERTURBATION, 1, 0.02, 0.98)
        v = self.velocity(self.fake, tau * noise[0] + (1 - tau) * z0, tau, batch)
        loss = (v - (noise[0] - z0)).square().mean()
        return loss, {"fake": loss.item()}

    def hinge(self, u, batch, k):
        z0 = self.sample(u, batch, k).detach()
        noise, t = self.draws(u, batch, Purpose.CRITIC, 2, 0.0, 0.2)
        real = self.score(t * noise[0] + (1 - t) * batch.latents, t, batch)
        fake = self.score(t * noise[1] + (1 - t) * z0, t, batch)
        loss = (torch.relu(1 - real) + torch.relu(1 + fake)).mean()
        return loss, {"discriminator": loss.item()}


@pytest.fixture(scope="module")
def plain():
    return {readings: Plain(*readings).run() for readings in (USUAL, *READINGS.values())}


class TestRounds:
    @pytest.mark.parametrize("name", [*ROUNDS, *READINGS, *LOW])
    def test_no_role_disturbs_another(self, two, name):
        for result in two.results(name):
            for row in result["rows"]:
                role = TRAINED[row["phase"]]
                moments = {"weights", "exp_avg", "exp_avg_sq", "updates"} | ({"ema"} if role == "student" else set())
                assert set(row["changed"]) == {f"{role}/{kind}" for kind in moments}
                assert row["reached"] == [role]

    @pytest.mark.parametrize("name", [*ROUNDS, *READINGS])
    def test_the_losses_are_those_of_plain_torch(self, two, plain, name):
        for result in two.results(name):
            for row, expected in zip(result["rows"], plain[READINGS.get(name, USUAL)], strict=True):
                values = {key: row["values"][key] for key in expected}
                assert values == pytest.approx(expected, rel=1e-4, abs=1e-6)

    @pytest.mark.parametrize("name", [*ROUNDS, *READINGS, *LOW])
    def test_bytes_are_those_of_the_arithmetic(self, two, name):
        for result in two.results(name):
            assert result["bytes"] == result["planned"]
            assert all(held["weights"] for held in result["bytes"].values())

    def test_the_printed_equation_gives_another_student(self, two):
        other, usual = (two.results(name)[0]["rows"] for name in ("rounds eq10", "rounds 2"))
        assert other[3]["values"]["adversarial"] == usual[3]["values"]["adversarial"]  # before it has learnt
        assert other[4]["values"]["adversarial"] != usual[4]["values"]["adversarial"]


class TestResume:
    @pytest.mark.parametrize("end", [*ENDS, f"{BF16} bf16"])
    @pytest.mark.parametrize("role", ROLES)
    def test_a_broken_run_ends_as_if_it_had_not(self, two, end, role):
        kinds = KINDS if role == "student" else [kind for kind in KINDS if kind != "ema"]
        through = "through bf16" if "bf16" in str(end) else "through"
        folders = [two.checkpoint(name, 10) for name in (through, f"resumed {end}")]
        assert differing(*folders, role, kinds) == []

    def test_asked_to_stop_in_a_round_saves_at_its_end(self, two):
        """One rank is asked in update 3, which ends no round; then both in the last round, which is the end anyway."""
        stopped = {"said": "asked to stop: step 6 of 10 is saved; go on with --resume", "code": ExitCode.STOPPED}
        assert two.results("asked") == 2 * [{"ends": [stopped, {}, {}]}]
        for role in ROLES:
            kinds = KINDS if role == "student" else [kind for kind in KINDS if kind != "ema"]
            assert differing(two.checkpoint("through", 10), two.checkpoint("asked", 10), role, kinds) == []
        lines = (two.folders["asked"] / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 11)), "no update twice, and none left out"

    def test_checkpoints_stand_before_the_first_round_and_at_the_ends_of_rounds(self, two):
        names = sorted(path.name for path in (two.folders["through"] / "checkpoints").iterdir())
        assert names == [f"step_{update:08d}" for update in (1, 2, 6, 10)]


WELL = {"distance_samples": 0.9, "distance_data": 1.0, "deviation_samples": 0.8, "deviation_data": 1.0}


class TestWarnings:
    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"distance_samples": 0.2}, "become like one another: their distance is 0.20 of the data's; lower student"),
            ({"deviation_samples": 0.1}, "become silent or flat: their deviation is 0.10 of the data's"),
            ({"discriminator": 0.01}, r"tells every sample from data \(hinge loss 0.010\): lower discriminator"),
        ],
    )
    def test_collapse_and_a_discriminator_that_won_are_named(self, values, words):
        task = object.__new__(Distillation)  # what is said depends on the values alone
        assert task.warnings(WELL | {"discriminator": 1.7}) == []
        (said,) = task.warnings(WELL | values)
        assert re.search(words, said)


COUNTED = {
    "dmd": (),
    "eq10": ("distillation.loss=eq10",),
    "eq10_sg_teacher": ("distillation.loss=eq10_sg_teacher",),
    "rolled": ("sampling.kind=euler", "warm_start.rollout=true"),
}


@pytest.mark.long
def test_operations_are_counted_to_a_twentieth(scenes, tmp_path):
    """Of a sample in every kind of update: what a batch of 8 takes more than one of 4."""

    def sized(batch):
        return f"training.global_batch={batch}", f"training.micro_batch={batch}", "warm_start.updates=4"

    pairs = itertools.product(COUNTED, (4, 8))
    items = [Item(f"{name} {batch}", "operations", (*COUNTED[name], *sized(batch))) for name, batch in pairs]
    launch, found = Launch(1, scenes, tmp_path, items, "tests.distillation_ranks"), set()
    for name, how in COUNTED.items():
        four, eight = (launch.results(f"{name} {batch}")[0]["rows"] for batch in (4, 8))
        for a, b in zip(four, eight, strict=True):
            assert (a["phase"], a["k"]) == (b["phase"], b["k"])
            expected = update_flops(small_distill_config(None, *how), Phase(a["phase"]), a["k"], 8)
            assert (b["count"] - a["count"]) / 4 == pytest.approx(expected, rel=0.05), (name, a["phase"], a["k"])
            found.add((name, a["phase"]))
    assert len(found) == len(COUNTED) * len(Phase)
