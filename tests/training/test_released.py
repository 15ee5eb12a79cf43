"""The released network is trained and distilled as ours is, with the numbers of plain PyTorch at every ZeRO stage."""

import numpy as np
import pytest
import torch

from audiox_trainer.models.released.audiox import SILENCE
from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.checkpoint.convert_run import convert_run
from audiox_trainer.trainer.checkpoint.licences import CC_BY_NC
from audiox_trainer.trainer.checkpoint.weights_folder import load_weights
from audiox_trainer.trainer.cost.operations import training_flops
from tests.helpers.plain_training import plain_training
from tests.helpers.released_scenarios import DISTILL
from tests.helpers.released_weights import SIZES, released_config, save_released
from tests.helpers.scenario_results import Item, Launch

pytestmark = pytest.mark.slow
CURVE = ("training.steps=3", "optimizer.weight_decay=0.1", "optimizer.max_grad_norm=0.5")
RUN = ("training.steps=4", "checkpoint.every=2", "zero.stage=2")
ROUND = (
    DISTILL,
    "training.steps=2",
    "updates.student=2",
    "updates.fake_warm_up=1",
    "distillation.discriminator_blocks=2",
    "student.zero.stage=2",
    "fake.zero.stage=3",
    "discriminator.zero.stage=1",
    'logging.preview_prompts=["a bell"]',
)
ITEMS = [
    *(Item(f"stage {n}", "losses", (*CURVE, f"zero.stage={n}")) for n in (0, 1, 2, 3)),
    Item("checkpointed", "losses", (*CURVE, "training.activation_checkpointing=true")),
    Item("through", "whole", RUN),
    Item("broken", "whole", RUN, arguments={"stop": 3}),
    Item("resumed", "whole", RUN, folder="broken", arguments={"resume": True}),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_released(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def two(weights, tmp_path_factory):
    items = [
        *ITEMS,
        *(
            Item(name, "rounds", (*ROUND, f"teacher.sharded={sharded}"), arguments={"weights": str(weights)})
            for name, sharded in (("rounds", "false"), ("rounds sharded", "true"))
        ),
    ]
    return Launch(2, weights, tmp_path_factory.mktemp("two"), items, "tests.helpers.released_scenarios")


@pytest.fixture(scope="module")
def plain(weights):
    """Loss and gradient norm of every step, and the weights, of a loop that knows nothing of ranks."""
    network = load_weights(weights)
    return plain_training(network, released_config(weights, *CURVE)), dict(network.named_parameters())


@pytest.mark.parametrize("name", ["stage 0", "stage 1", "stage 2", "stage 3", "checkpointed"])
def test_training_is_that_of_plain_pytorch(two, plain, name):
    curve, weights = plain
    for result in two.results(name):
        np.testing.assert_allclose(np.array(result["curve"]), curve, rtol=2e-4)
    found = load.full_tensors(two.checkpoint(name, 3), "model", "weights")
    assert found.keys() == weights.keys() | {SILENCE}
    for key, x in weights.items():
        torch.testing.assert_close(found[key], x.detach(), rtol=1e-3, atol=2e-5)


def test_a_resumed_run_has_the_same_bits(two):
    through, resumed = (load.full_tensors(two.checkpoint(n, 4), "model", "ema") for n in ("through", "broken"))
    assert all(torch.equal(x, resumed[name]) for name, x in through.items())
    assert through[SILENCE].any()


def test_what_was_trained_becomes_weights(two, weights, tmp_path):
    convert_run(two.folders["through"], tmp_path / "out")
    ours, before = load_weights(tmp_path / "out"), load_weights(weights)
    assert torch.equal(ours.silence, before.silence)
    assert ours.config.released == SIZES.model.released
    assert not torch.equal(ours.backbone.transformer.project_out.weight, before.backbone.transformer.project_out.weight)


@pytest.mark.parametrize("name", ["rounds", "rounds sharded"])
def test_a_distillation_trains_one_role_per_update(two, name):
    for result in two.results(name):
        kinds = {"warm_start": "student", "fake_warm_up": "fake"}
        for kind, changed, applied, flops in result["rows"]:
            assert applied and flops > 0
            assert changed == [kinds.get(kind, kind)], result["rows"]
        assert {changed[0] for _, changed, *_ in result["rows"]} == {"student", "fake", "discriminator"}
        assert result["finite"] and len(result["waves"][0]) == result["waves"][1][0]


def test_operations_are_counted(weights):
    config = released_config(weights)
    assert training_flops(config.model, 16) == training_flops(config.model, 8) > 0
    assert CC_BY_NC in load_weights(weights).license
