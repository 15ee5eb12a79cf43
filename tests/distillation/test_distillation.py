"""Distillation is correct: the roles do not disturb one another, the numbers are those of plain PyTorch at every
ZeRO stage, and an interruption changes nothing."""

import functools
import itertools
import json
import re

import pytest
import torch

from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.core.cli import ExitCode
from audiox_trainer.trainer.core.update_cycle import Phase
from audiox_trainer.trainer.cost.operations import distillation_flops
from audiox_trainer.trainer.cost.passes import distillation_passes
from audiox_trainer.trainer.distillation.updates import Distillation
from tests.distillation.conftest import ADAPTERS, BF16, COMPILED, ENDS, MIDWAY, ROLES, TWO_RANKS, TWO_RANKS_LONG
from tests.helpers.reference_distillation import TRAINED, Plain
from tests.helpers.scenario_results import KINDS, Item, Launch, differing
from tests.helpers.small_config import small_distill_config

pytestmark = pytest.mark.slow

LOW = ["rounds bf16 1", "rounds bf16 2", "rounds bf16 own", "rounds bf16 adapters"]
OTHERS = ["rounds eq10", "rounds stopped", "rounds euler", "rounds rolled", "rounds own", "rounds elsewhere"]
OTHERS += ["rounds phases", "rounds levels", "rounds stage", "rounds stage 3", "rounds adapters"]
ROUNDS = ["rounds 1", "rounds 2", "rounds 3", "rounds accumulated", "rounds sharded"]
LONG = [item.name for item in TWO_RANKS_LONG]
LAST = 11  # the update that ends a run of `RESUMED`
OF_RANKS = re.compile(r"zero|deepspeed|sharded")  # overrides that make no difference to the numbers


@functools.cache
def run(overrides, paired):
    return Plain(small_distill_config(None, *overrides), paired)


@pytest.fixture(scope="module")
def plain():
    """The expected result of a `rounds` item of the launch, by its name."""
    items = {item.name: item for item in (*TWO_RANKS, *TWO_RANKS_LONG) if item.scenario == "rounds"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are small: two would wait for each other, on a busy machine for a minute
    yield lambda name: run(
        tuple(override for override in items[name].overrides if not OF_RANKS.search(override)),
        tuple(items[name].arguments.get("paired", ())),
    )
    torch.set_num_threads(threads)


@pytest.fixture
def launch(request, name):
    """The launch that has the item of this name."""
    return request.getfixturevalue("distilled_long" if name in LONG else "distilled")


def named(*names):
    """Items of both launches; those of the long one are long tests."""
    return pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] * (n in LONG)) for n in names])


def watched(row):
    """An update's values of losses, gradients at ẑ_0, scores and samples, without memory and optimizer."""
    return {key: value for key, value in row["values"].items() if "/" not in key}


def apart(a, b):
    """The distance of all of a model's weights from others."""
    assert a.keys() == b.keys()
    return sum((a[name] - b[name]).detach().double().square().sum() for name in a) ** 0.5


class TestRounds:
    @named(*ROUNDS, *OTHERS, *LOW, *LONG)
    def test_no_role_disturbs_another(self, launch, name):
        for result in launch.results(name):
            for row in result["rows"]:
                role = TRAINED[row["phase"]]
                owned = {"weights", "computed", "exp_avg", "exp_avg_sq", "updates"}
                owned = {f"{role}/{kind}" for kind in owned} | ({"student/ema"} if role == "student" else set())
                if "stage" in name and row["phase"] == "student":  # the fake model follows it
                    owned |= {"fake/weights", "fake/computed"}
                # Its gradients are gone after the step, or stay in a buffer, as DeepSpeed's stages have it.
                assert set(row["changed"]) - {f"{role}/gradients"} == owned
                assert row["reached"] == [role] and row["frozen"]

    @named(*ROUNDS, *OTHERS, *(name for name in LONG if "bf16" not in name))
    def test_losses_and_what_is_watched_are_those_of_plain_torch(self, launch, plain, name):
        for result in launch.results(name):
            for row, expected in zip(result["rows"], plain(name).rows, strict=True):
                assert watched(row) == pytest.approx(expected, rel=1e-4, abs=1e-6)

    @named(*ROUNDS, *OTHERS, *(name for name in LONG if "bf16" not in name))
    def test_weights_and_their_average_become_those_of_plain_torch(self, launch, plain, name):
        expected = plain(name)
        folder = launch.checkpoint(name, len(expected.rows))
        for role in ROLES:
            found, end = load.full_tensors(folder, role, "weights"), expected.trained(role)
            assert apart(found, end) < 1e-3 * apart(expected.starts[role], end)
        found = load.full_tensors(folder, "student", "ema")
        assert apart(found, expected.ema) < 1e-3 * apart(expected.starts["student"], expected.ema)

    @named("rounds 1", "rounds 3", "rounds sharded")
    def test_stages_and_a_sharded_teacher_make_no_difference(self, launch, name):
        for rows in zip(*(launch.results(one)[0]["rows"] for one in ("rounds 2", name)), strict=True):
            usual, other = map(watched, rows)
            assert other == pytest.approx(usual, rel=1e-4, abs=1e-6)

    @named(*ROUNDS, *OTHERS, *LOW, *LONG)
    def test_bytes_are_those_of_the_arithmetic(self, launch, name):
        for result in launch.results(name):
            assert result["bytes"] == result["planned"]
            assert all(held["weights"] for held in result["bytes"].values())

    @named("rounds 3", "rounds sharded", "rounds stage 3", "rounds own", "rounds eq10 3", "rounds bf16 3")
    def test_weights_that_are_sharded_are_gathered_ahead_in_every_update(self, launch, name):
        for result in launch.results(name):
            assert result["discarded"] and not any(result["discarded"].values())

    def test_the_printed_equation_gives_another_student(self, distilled):
        other, usual = (distilled.results(name)[0]["rows"] for name in ("rounds eq10", "rounds 2"))
        assert other[3]["values"]["adversarial"] == usual[3]["values"]["adversarial"]  # before it has learnt
        assert other[4]["values"]["adversarial"] != usual[4]["values"]["adversarial"]


class TestResume:
    @pytest.mark.parametrize("end", [*ENDS, f"{BF16} bf16", f"{ENDS[2]} adapters"])
    @pytest.mark.parametrize("role", ROLES)
    def test_a_broken_run_ends_as_if_it_had_not(self, distilled, end, role):
        kinds = KINDS if role == "student" else [kind for kind in KINDS if kind != "ema"]
        through = " ".join(["through", *str(end).split()[1:]])
        folders = [distilled.checkpoint(name, LAST) for name in (through, f"resumed {end}")]
        assert differing(*folders, role, kinds) == []

    @pytest.mark.parametrize("role", ROLES)
    def test_a_checkpoint_within_a_round_is_gone_on_with(self, distilled, role):
        """No checkpoint is made there now, but a round's position must still follow from the step alone."""
        assert not distilled.checkpoint("through", MIDWAY).exists()
        log = (distilled.folders["resumed midway"] / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in log] == list(range(MIDWAY + 1, LAST + 1))
        kinds = KINDS if role == "student" else [kind for kind in KINDS if kind != "ema"]
        ends = [distilled.checkpoint(name, LAST) for name in ("through", "resumed midway")]
        assert differing(*ends, role, kinds) == []

    def test_asked_to_stop_in_a_round_saves_at_its_end(self, distilled):
        """One rank is asked in update 3, in the middle of a round; then both in the last round, which is the end
        anyway."""
        stopped = {"said": "asked to stop: step 7 of 11 is saved; continue with --resume", "code": ExitCode.STOPPED}
        assert distilled.results("asked") == 2 * [{"ends": [stopped, {}, {}]}]
        for role in ROLES:
            kinds = KINDS if role == "student" else [kind for kind in KINDS if kind != "ema"]
            assert differing(*(distilled.checkpoint(name, LAST) for name in ("through", "asked")), role, kinds) == []
        lines = (distilled.folders["asked"] / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [*range(1, LAST + 1)], "none twice, none left out"

    def test_checkpoints_stand_before_the_first_round_and_at_the_ends_of_rounds(self, distilled):
        names = sorted(path.name for path in (distilled.folders["through"] / "checkpoints").iterdir())
        assert names == [f"step_{update:08d}" for update in (1, 2, 3, 7, LAST)]


LOST = r"tells every sample from data \(hinge loss 0.000\): lower discriminator"
ALIKE = "become like one another: their distance is 0.0\\d of the data's; lower student"
FLAT = "become silent or flat: their deviation is 0.\\d\\d of the data's; lower student"


class TestWarnings:
    @pytest.mark.parametrize(("name", "of_student"), [("alike", [ALIKE]), ("flat", [ALIKE, FLAT])])
    def test_collapse_and_a_discriminator_that_won_are_named(self, distilled, name, of_student):
        expected = {"student": of_student, "discriminator": [LOST]}
        for result in distilled.results(name):
            assert [row["phase"] for row in result["rows"]] == ["warm_start", "student", "fake", "discriminator"]
            for row in result["rows"]:
                words = expected.get(row["phase"], [])
                assert len(row["said"]) == len(words)
                assert all(re.search(word, said) for word, said in zip(words, row["said"], strict=True))

    def test_nothing_is_said_of_what_goes_well(self, distilled):
        assert not any(row["said"] for row in distilled.results("rounds 2")[0]["rows"])

    @pytest.mark.parametrize("kind", ["distance", "deviation"])
    def test_a_value_that_is_missing_is_not_passed_over(self, kind):
        task = object.__new__(Distillation)  # what is said depends on configuration and values alone
        task.config = small_distill_config()
        values = {f"{what}_{of}": 1.0 for what in ("distance", "deviation") for of in ("samples", "data")}
        assert task.warnings(values | {"dm": 1.0}) == []
        del values[f"{kind}_samples"]
        with pytest.raises(KeyError, match=f"{kind}_samples"):
            task.warnings(values | {"dm": 1.0})


COUNTED = {
    "dmd": (),
    "eq10": ("distillation.loss=eq10",),
    "eq10_sg_teacher": ("distillation.loss=eq10_sg_teacher",),
    "rolled": ("sampling.sampler=euler", "warm_start.rollout=true"),
    "unguided": ("distillation.teacher_guidance=1", "distillation.discriminator_blocks=2"),
    "interval": ("distillation.guidance_interval=[0.4, 0.9]", "warm_start.ode_shift=2"),
    "anchored": ("distillation.regression_weight=1", 'distillation.guidance_noise_levels={"shift": 3}'),
    "discriminator": ("distillation.r1_weight=1", "distillation.contrastive_weight=1"),
    "adapters": ADAPTERS,
    "not adversarial": ("distillation.adversarial_weight=0", "warm_start.rollout=true"),
}


def listed(config, row, micro_batches):
    """The passes of an update as `cost.passes` lists them."""
    passes = distillation_passes(config, Phase(row["phase"]), row["k"])
    return micro_batches * [
        {"role": one.role, "gradient": one.gradient.name, "samples": one.samples, "blocks": one.blocks}
        for one in passes
        for _ in range(one.count)
    ]


@pytest.mark.parametrize("name", [*ROUNDS, *OTHERS, *LOW])
def test_an_update_makes_the_passes_that_are_listed(distilled, name):
    """Each with its role, its gradient, its number of blocks and its share of samples, in the listed order."""
    item = next(item for item in TWO_RANKS if item.name == name)
    config = small_distill_config(None, *item.overrides)
    pairs = item.arguments.get("paired", ())
    paired = small_distill_config(None, *item.overrides, "warm_start.pairs=made") if pairs else config
    micro_batches = config.training.global_batch // config.training.micro_batch // 2
    for result in distilled.results(name):
        for update, row in enumerate(result["rows"]):
            fitting = paired if update in pairs else config
            assert row["passes"] == listed(fitting, row, micro_batches), (update, row["phase"], row["k"])


@pytest.mark.long
def test_operations_are_counted_to_a_twentieth(scenes, tmp_path):
    """Operations per sample in every kind of update: the difference of a batch of 8 and one of 4."""

    def sized(batch):
        return f"training.global_batch={batch}", f"training.micro_batch={batch}", "warm_start.updates=4"

    pairs = itertools.product(COUNTED, (4, 8))
    items = [Item(f"{name} {batch}", "operations", (*COUNTED[name], *sized(batch))) for name, batch in pairs]
    launch, found = Launch(1, scenes, tmp_path, items, "tests.helpers.distillation_scenarios"), set()
    for name, how in COUNTED.items():
        four, eight = (launch.results(f"{name} {batch}")[0]["rows"] for batch in (4, 8))
        config = small_distill_config(None, *how)
        for a, b in zip(four, eight, strict=True):
            assert (a["phase"], a["k"]) == (b["phase"], b["k"])
            expected = distillation_flops(config, Phase(a["phase"]), a["k"], 8)
            assert (b["count"] - a["count"]) / 4 == pytest.approx(expected, rel=0.05), (name, a["phase"], a["k"])
            assert a["passes"] == b["passes"] == listed(config, a, 1)
            found.add((name, a["phase"]))
    assert len(found) == len(COUNTED) * (len(Phase) - 1) - 1  # none has a warm-up of the discriminator


@pytest.mark.long
def test_blocks_stay_compiled_with_texts_of_several_lengths(scenes, tmp_path):
    """torch's own limit is 8 versions of a block's code; beyond it the block runs uncompiled."""
    launch = Launch(2, scenes, tmp_path, [COMPILED], "tests.helpers.distillation_scenarios")
    for rank in launch.results("compiled"):
        versions = rank["versions"]
        assert 8 < versions[-1] <= 16
        assert versions[-7:] == [versions[-1]] * 7  # a whole round compiles nothing
        assert rank["said"] == []
        assert f"{versions[-1]} versions of a block are compiled" in rank["said at the limit"][0]
