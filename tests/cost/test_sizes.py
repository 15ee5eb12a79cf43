"""Parameters and operations: the sizes that the configurations promise, counted without allocating a weight."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from audiox_trainer.models.audiox import AudioX
from audiox_trainer.models.networks import count_parameters
from audiox_trainer.trainer.core.config import check_ranks, load_pretrain_config
from audiox_trainer.trainer.cost.operations import forward_flops, training_flops


def parameters(config):
    with torch.device("meta"):
        return count_parameters(AudioX(config.model))


def load(root, name):
    return load_pretrain_config(root / "configs" / f"{name}.json")


def test_2p7b_is_as_large_as_the_paper_says(root):
    """Section VI-A: 2.4 B trained, 24 layers, a fusion module of about 60 M."""
    parts = parameters(load(root, "2p7b"))
    for name, count in parts.items():
        print(f"{name:10} {count / 1e6:9.2f} M")
    assert parts["total"] == pytest.approx(2.40e9, rel=0.01)
    assert parts["blocks"] == pytest.approx(2258e6, rel=0.001)
    assert parts["fusion"] == pytest.approx(60e6, rel=0.06)
    assert parts["temporal"] == pytest.approx(63e6, rel=0.05)
    assert sum(v for k, v in parts.items() if k != "total") == parts["total"]


def test_2p7b_is_trained_as_the_paper_says(root):
    config = load(root, "2p7b")
    assert (config.optimizer.lr, config.optimizer.betas, config.optimizer.weight_decay) == (1e-5, (0.9, 0.999), 1e-3)
    assert (config.schedule.warmup, config.schedule.inv_gamma, config.schedule.power) == (0.99, 1e6, 0.5)
    assert (config.training.steps, config.training.global_batch, config.training.timestep_sampling) == (
        100_000,
        240,
        "uniform",
    )
    assert config.model.codec.samples == 440_320
    assert [check_ranks(config.training, ranks) for ranks in (1, 2, 4, 8, 16)] == [16, 8, 4, 2, 1]


def test_the_tasks_of_2p7b_come_in_the_proportions_of_table_a1(root):
    clips = {  # thousands
        "T2A": 45.0 + 108.3 + 1268 + 20,
        "V2A": 176.9 + 67.3 + 1.0,
        "TV2A": 1268 + 1.0,
        "T2M": 175.2 + 7880.2 + 22.0,
        "V2M": 7880.2,
        "TV2M": 7880.2,
        "inpainting": 398.5,
        "completion": 5882.9,
    }
    for name in ("2p7b", "single_gpu"):
        weights = {}
        for stream in load(root, name).data.streams:
            weights |= stream.tasks
        assert weights == pytest.approx(clips)


def test_single_gpu_fits_24_gb(root):
    config = load(root, "single_gpu")
    theirs = load(root, "2p7b").model
    assert (config.model.codec, config.model.text, config.model.video) == (theirs.codec, theirs.text, theirs.video)
    # bf16 weights 2, fp32 gradients 4, masters 4, moments 8, EMA 4: 22 bytes a parameter; the rest is for activations.
    assert parameters(config)["total"] * 22 < 10e9
    assert check_ranks(config.training, 1) > 1


FUSIONS = {
    "whole": {},
    "no gates": {"gates": False},
    "no queries": {"attention": False},
    "none": {"enabled": False},
}


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("linear_path", [False, True])
@pytest.mark.parametrize(("tokens", "video"), [(8, True), (24, True), (24, False)])
def test_operations_are_counted_exactly(small, fusion, linear_path, tokens, video):
    seen = small.model if video else replace(small.model, video=None, video_temporal=None)
    fused = replace(seen, fusion=replace(seen.fusion, **FUSIONS[fusion]))
    config = replace(fused, backbone=replace(fused.backbone, linear_path=linear_path))
    model, found = AudioX(config), forward_flops(config, tokens)
    assert found["total"] == of_one_sample(lambda *inputs: model(*inputs), config, tokens)
    assert sum(v for k, v in found.items() if k != "total") == found["total"]


def test_backward_is_twice_forward(small):
    """Except for the products that would lead into the features, which have no gradient."""
    config = small.model
    model = AudioX(config)
    codec, video = config.codec, config.video
    into_features = 2 * codec.frames * codec.latent_channels * config.backbone.width  # latent_in
    into_features += 2 * video.steps * video.dim * config.video_temporal.width
    into_features += 2 * codec.frames * codec.latent_channels * config.audio_temporal.width
    into_features += 2 * 24 * config.text.dim * config.fusion.width + 2 * 256 * config.backbone.width  # time embedding
    counted = of_one_sample(lambda *inputs: model(*inputs).sum().backward(), config, 24)
    assert training_flops(config, 24) - into_features == counted


def of_one_sample(run, config, tokens):
    """Operations of one sample: those of two less those of one."""
    counts = []
    for batch in (1, 2):
        with FlopCounterMode(display=False) as counter:
            run(*arguments(config, tokens, batch))
        counts.append(counter.get_total_flops())
    return counts[1] - counts[0]


def test_operations_of_2p7b(root):
    """About 3.4 TFLOP per sample in the blocks at 215 + 463 tokens, forward and backward, and a little for the rest."""
    config = load(root, "2p7b").model
    parts = forward_flops(config, 128)
    blocks = sum(parts[k] for k in ("latent stream", "condition stream", "attention", "modulation"))
    assert 3 * blocks == pytest.approx(3.4e12, rel=0.03)
    assert training_flops(config, 128) == pytest.approx(3.6e12, rel=0.05)
    assert sum(v for k, v in parts.items() if k != "total") == parts["total"]


def arguments(config, tokens, batch):
    codec = config.codec
    z, audio = torch.randn(2, batch, codec.frames, codec.latent_channels)
    text = torch.randn(batch, tokens, config.text.dim)
    length = torch.full((batch,), tokens - 3)
    return z, torch.rand(batch), torch.randn(batch, config.video_rows, config.video_dim), audio, text, length
