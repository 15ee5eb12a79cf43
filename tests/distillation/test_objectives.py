"""Every objective, target and phase against plain torch: whole distillations of a small model in one process.

The same on ranks under DeepSpeed is in test_distillation.py, for fewer configurations.
"""

import pytest
import torch
from torch import distributed

from audiox_trainer.trainer.distillation.updates import Distillation
from audiox_trainer.trainer.engine.process_group import World
from tests.distillation.conftest import ADAPTERS, ELSEWHERE, LEVELS, MIXED, PHASES
from tests.helpers import scenarios
from tests.helpers.distillation_scenarios import teacher
from tests.helpers.reference_distillation import Plain
from tests.helpers.small_config import small_distill_config
from tests.helpers.torch_engine import TorchEngine

pytestmark = pytest.mark.slow

SHORT = ("training.steps=4", "updates.student=2")
CASES = {
    "usual": (),
    "accumulated": ("training.micro_batch=2", *SHORT),
    "elsewhere": (*ELSEWHERE, *SHORT),
    "phases": (*PHASES, *SHORT),
    "levels": LEVELS,
    "mixed": MIXED,
    "split": (
        *SHORT,
        'distillation.guidance_noise_levels={"range": [0.3, 1.0], "shift": 3.0}',
        "distillation.guidance_interval=[0.5, 1.0]",
    ),
    "anchored": (
        *SHORT,
        "warm_start.updates=0",
        "distillation.matching_weight=2",
        "distillation.adversarial_weight=0.3",
        "distillation.regression_weight=0.7",
    ),
    "anchored by endpoints": (*SHORT, "sampling.sampler=euler", "distillation.regression_weight=0.7"),
    "anchored alone": (*SHORT, "distillation.matching_weight=0", "distillation.regression_weight=0.7"),
    "steered": (*SHORT, "distillation.adversarial_weight=1", "distillation.adversarial_gradient_ratio=0.2"),
    "aligned": (
        "training.steps=4",
        'updates={"preset": "fake_twice"}',
        "distillation.fake_alignment=0.2",
        "distillation.adversarial_weight=0",
    ),
    "discriminator": (
        *SHORT,
        "distillation.discriminator_blocks=2",
        "distillation.discriminator_heads=2",
        "distillation.r1_weight=10",
        "distillation.r1_sigma=0.05",
        "distillation.contrastive_weight=0.5",
        "discriminator.optimizer.eps=1e-4",  # scores are next to zero
    ),
    "adapters of the fake model": (*SHORT, ADAPTERS[1]),
    "adapters of both": (*SHORT, "warm_start.updates=2", *ADAPTERS),
    "interval": (*LEVELS, "distillation.guidance_interval=[0.4, 0.8]"),
}
PAIRED = {"mixed": (1, 2)}


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(scenarios, "WORLD", World(0, 1, 0, torch.device("cpu")), raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    distributed.destroy_process_group()


def distance(a, b):
    return sum((one - other).double().square().sum() for one, other in zip(a, b, strict=True)) ** 0.5


@pytest.mark.parametrize("name", CASES)
def test_losses_gradients_and_weights_are_those_of_plain_torch(name):
    config = small_distill_config(None, *CASES[name])
    expected = Plain(config, PAIRED.get(name, ()), ranks=1)
    task = Distillation(config, teacher(config), scenarios.WORLD, engine=TorchEngine)
    batches = scenarios.MadeUp(config, paired=PAIRED.get(name, ())).batches(0)
    assert task.total == len(expected.rows)
    for update, row in enumerate(expected.rows):
        task.step(update, next(batches))
        found = {key: value for key, value in task.metrics().items() if "/" not in key}
        assert found == pytest.approx(row, rel=1e-4, abs=1e-6), (update, task.kind(update))
    for role, start in expected.starts.items():
        end = expected.trained(role).values()
        assert distance(task.engines[role].shards(), end) <= 1e-3 * distance(start.values(), end)
    average = expected.ema.values()
    assert distance(task.ema.values, average) < 1e-3 * distance(expected.starts["student"].values(), average)
