"""A run that resumes on two, then four, then one rank: the same samples in the same order, the same state."""

import json

import pytest

from audiox_trainer.trainer.checkpoint import load
from tests.distillation.conftest import ROLES
from tests.distillation.conftest import stage as distill_stage
from tests.helpers.scenario_results import KINDS, Item, Launch, differing, stage, state

pytestmark = [pytest.mark.slow, pytest.mark.long]
# Relative tolerances of the final state and of each loss: gradients are summed in another order.
STATE = {"fp32": 1e-4, "bf16": 1e-2}
LOSS = {"fp32": 1e-5, "bf16": 1e-3}
PLAIN = stage(2, "training.micro_batch=2")
SHORT = (
    "training.micro_batch=2",
    "training.steps=4",
    "updates.student=2",
    "updates.fake_warm_up=1",
    "checkpoint.every=1",
    "checkpoint.keep_last=0",
)
ROUNDS = distill_stage(2, *SHORT)


def samples(launch, name, ranks):
    """-> step -> index -> sample of all ranks; no index has two samples."""
    found: dict[int, dict[int, str]] = {}
    for rank in range(ranks):
        file = launch.folders[name] / f"samples_{ranks}_{rank}.jsonl"
        for line in map(json.loads, file.read_text().splitlines()):
            step = found.setdefault(line["step"], {})
            for index, sample in zip(line["indices"], line["ids"], strict=True):
                assert index not in step
                step[index] = sample
    return found


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def pretraining(precision, scenes, tmp_path_factory):
    base, record = tmp_path_factory.mktemp("resized"), {"record": True}
    settings = (*PLAIN, f"training.precision={precision}")
    two = [Item("through", "whole", settings, arguments=record)]
    two += [Item("resized", "whole", settings, arguments=record | {"stop": 4})]
    first = Launch(2, scenes, base, two)
    more = record | {"resume": True}
    second = Launch(4, scenes, base, [Item("resized", "whole", settings, arguments=more | {"stop": 8})])
    third = Launch(1, scenes, base, [Item("resized", "whole", settings, arguments=more)])
    return first, second, third


def test_the_same_samples_in_the_same_order(pretraining):
    first, second, third = pretraining
    through = samples(first, "through", 2)
    assert sorted(through) == list(range(12)) and all(sorted(row) == list(range(8)) for row in through.values())
    assert samples(first, "resized", 2) == {step: through[step] for step in range(4)}
    assert samples(second, "resized", 4) == {step: through[step] for step in range(4, 8)}
    assert samples(third, "resized", 1) == {step: through[step] for step in range(8, 12)}


def test_the_end_is_that_of_one_number_of_ranks(pretraining, precision):
    """Equal up to the order in which gradients are summed."""
    first, _, third = pretraining
    folders = first.checkpoint("through", 12), third.checkpoint("resized", 12)
    assert [load.read_manifest(f)["ranks"] for f in folders] == [2, 1]
    assert differing(first.checkpoint("through", 4), first.checkpoint("resized", 4)) == []
    check_close(*folders, "model", KINDS, STATE[precision])
    curves = []
    for name in ("through", "resized"):
        lines = (first.folders[name] / "metrics.jsonl").read_text().splitlines()
        curves.append([json.loads(line)["loss"] for line in lines])
    assert len(curves[0]) == 12
    assert curves[1] == pytest.approx(curves[0], rel=LOSS[precision])


def test_distillation(scenes, tmp_path_factory):
    base, module = tmp_path_factory.mktemp("resized"), "tests.helpers.distillation_scenarios"
    two = [Item("through", "whole", ROUNDS), Item("resized", "whole", ROUNDS, arguments={"stop": 3})]
    first = Launch(2, scenes, base, two, module)
    again = {"source": "resized"}
    four = [Item("held by four", "reload", distill_stage(3, *SHORT), arguments=again)]
    four += [Item("resized", "whole", ROUNDS, arguments={"resume": True, "stop": 7})]
    second = Launch(4, scenes, base, four, module)
    one = [Item("held by one", "reload", distill_stage(1, *SHORT), arguments=again)]
    third = Launch(1, scenes, base, [*one, Item("resized", "whole", ROUNDS, arguments={"resume": True})], module)
    ranks = [load.read_manifest(first.checkpoint("resized", step))["ranks"] for step in (2, 6, 10)]
    assert ranks == [2, 4, 1]
    for role in ROLES:
        kinds = KINDS if role == "student" else [kind for kind in KINDS if kind != "ema"]
        for launch, held, step in ((second, "held by four", 2), (third, "held by one", 6)):  # right after resharding
            assert differing(first.checkpoint("resized", step), launch.checkpoint(held, step), role, kinds) == []
        check_close(first.checkpoint("through", 10), first.checkpoint("resized", 10), role, kinds)
    curves = [losses(first.folders[name]) for name in ("through", "resized")]
    assert len(curves[0]) == 10 and all(curves[0])
    for through, resized in zip(*curves, strict=True):
        assert resized == pytest.approx(through, rel=LOSS["fp32"])


def test_compiled_code_goes_on_in_another_process_bitwise(scenes, tmp_path):
    """Texts of several lengths, for which the model is compiled more than once."""
    settings = stage(2, "training.precision=bf16", "training.compile=true", "training.compile_conditioner=true")
    begun = [Item("through", "whole", settings), Item("broken", "whole", settings, arguments={"stop": 7})]
    first = Launch(2, scenes, tmp_path, begun)
    Launch(2, scenes, tmp_path, [Item("broken", "whole", settings, arguments={"resume": True})])
    assert differing(first.checkpoint("through", 12), first.checkpoint("broken", 12)) == []


def losses(folder):
    """The samples of each update."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    named = ("warm_start", "dm", "adversarial", "fake", "discriminator")
    return [{name: row[name] for name in named if name in row} for row in rows]


def check_close(first, second, role, kinds, bound=1e-4):
    a, b = state(first, role, kinds), state(second, role, kinds)
    assert a.keys() == b.keys()
    for kind in kinds:
        names = [name for name in a if name.startswith(f"{kind}/")]
        apart = sum(float((a[n] - b[n]).square().sum()) for n in names) ** 0.5
        size = sum(float(a[n].square().sum()) for n in names) ** 0.5
        assert 0 < size and apart < bound * size, f"{role} {kind}: {apart / size:.1e}"
    updates = [load.read_manifest(f)["roles"][role]["updates"] for f in (first, second)]
    assert updates[0] == updates[1]
