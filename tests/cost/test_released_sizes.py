"""Parameters and operations of the released network, counted without allocating a weight."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from audiox_trainer.models.networks import build_network, count_parameters
from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.core.distill_config import load_distill_config
from audiox_trainer.trainer.cost.operations import forward_flops, training_flops
from audiox_trainer.trainer.cost.workload import workload
from tests.helpers.released_weights import SIZES


def counted(config, n_blocks):
    with torch.device("meta"):
        network = build_network(config).requires_grad_(False)
        text = torch.zeros(1, config.text.max_tokens, config.text.dim)
        z = torch.zeros(1, config.latent_frames, config.codec.latent_channels)
        video = torch.zeros(1, config.video_rows, config.video.dim)
        audio = torch.zeros(1, config.codec.frames, config.codec.latent_channels)
        length = torch.zeros(1, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            network(z, torch.zeros(1), video, audio, text, length, n_blocks=n_blocks)
    return counter.get_total_flops()


@pytest.mark.parametrize("n_blocks", [None, 1, 2])
def test_operations_are_those_that_torch_counts(n_blocks):
    config = SIZES.model
    assert forward_flops(config, 16, n_blocks)["total"] == counted(config, n_blocks)


def test_the_full_size(root):
    """Section 14 of the specification: 0.16 TFLOP for the modulations, 0.81 for all else of an evaluation."""
    config = load_pretrain_config(root / "configs" / "finetune_released.json")
    parts = forward_flops(config.model, 128)
    assert parts["total"] == counted(config.model, None)
    assert parts["modulation"] == pytest.approx(0.161e12, rel=0.01)
    assert parts["latent stream"] + parts["attention"] == pytest.approx(0.82e12, rel=0.01)
    assert training_flops(config.model, 128) == 3 * parts["total"]
    with torch.device("meta"):
        count = count_parameters(build_network(config.model))
    assert count["total"] == 2_249_325_812 and count["blocks"] == 24 * (92_027_904 - 1536**2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finetune_released", "distill_released"])
def test_a_run_is_planned(root, name):
    """With two blocks in place of 24."""
    shorter = ["model.released.depth=2", "model.released.fusion_depth=1", "model.released.temporal_depth=1"]
    if name == "finetune_released":
        config = load_pretrain_config(root / "configs" / f"{name}.json", shorter)
    else:
        shorter.append("distillation.discriminator_blocks=2")
        config = load_distill_config(root / "configs" / f"{name}.json", shorter)
    planned = workload(config)
    assert planned.total >= config.training.steps and all(update.flops > 0 for update in planned.updates)
    kept, recomputed = (planned.updates[0].activations(1, checkpointing).saved for checkpointing in (False, True))
    assert 0 < recomputed < kept
