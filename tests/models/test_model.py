"""The networks: shapes, padding, initial state, positions and variants of fusion."""

import json
from dataclasses import replace

import pytest
import torch

from audiox_trainer.kernels.adaln import layer_norm_modulate
from audiox_trainer.models import strict
from audiox_trainer.models.audiox import AudioX, load_strict
from audiox_trainer.models.conditioner import video_seconds
from audiox_trainer.models.discriminator import DepthHeads, feature_depths, trunk_options
from audiox_trainer.models.embeddings import ConstantTensors, RopeTable, rope_table
from audiox_trainer.models.networks import count_parameters
from audiox_trainer.trainer.core.config import load_pretrain_config
from tests.helpers.random_weights import BATCH, TOKENS, inputs, stirred
from tests.helpers.small_config import ROOT


@pytest.fixture
def config(small):
    return small.model


def test_shapes(config):
    model, given = stirred(config), inputs(config)
    assert model(*given).shape == given[0].shape
    condition, length = model.encode(*given[2:])
    before_text = config.video.tokens + config.codec.frames
    assert condition.shape == (BATCH, before_text + TOKENS, config.fusion.width)
    assert length.tolist() == [before_text + n for n in given[5].tolist()]


def test_padded_text_is_never_attended(config):
    model, given = stirred(config), inputs(config)
    reference = model(*given)
    dirty = given[4].clone()
    for row, n in zip(dirty, given[5], strict=True):
        row[n:] = 1e4 * torch.randn_like(row[n:])
    assert torch.equal(model(*given[:4], dirty, given[5]), reference)


def test_text_that_counts_is_attended(config):
    model, given = stirred(config), inputs(config)
    reference = model(*given)
    for sample in range(BATCH):
        other = given[4].clone()
        other[sample, given[5][sample] - 1] += 1.0
        changed = (model(*given[:4], other, given[5]) != reference).flatten(1).any(1)
        assert changed.tolist() == [i == sample for i in range(BATCH)]


def test_longer_padding_changes_nothing(config):
    model, given = stirred(config), inputs(config)
    longer = torch.nn.functional.pad(given[4], (0, 0, 0, 8))
    torch.testing.assert_close(model(*given[:4], longer, given[5]), model(*given), atol=1e-5, rtol=1e-5)


def test_a_sample_does_not_depend_on_its_neighbours(config):
    model, given = stirred(config), inputs(config)
    together = model(*given)
    for i in range(BATCH):
        alone = model(*(x[i : i + 1] for x in given))
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)


def test_the_first_velocity_is_zero(config):
    model, given = AudioX(config), inputs(config)
    velocity = model(*given)
    assert torch.equal(velocity, torch.zeros_like(velocity))
    velocity.sum().backward()
    moving = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moving == {"backbone.latent_out.weight", "backbone.latent_out.bias"}


def test_the_linear_path_begins_as_the_best_linear_estimate(config):
    """The estimate of z_1 - z_0 from z_t, with noise and data of unit variance."""
    model, given = AudioX(replace(config, backbone=replace(config.backbone, linear_path=True))), inputs(config)
    z0, z1, t = torch.randn(100_000), torch.randn(100_000), torch.linspace(0.05, 1, BATCH)
    for level, velocity, z in zip(t, model(given[0], t, *given[2:]), given[0], strict=True):
        zt = level * z1 + (1 - level) * z0
        regressed = (zt * (z1 - z0)).mean() / zt.square().mean()
        torch.testing.assert_close(velocity, regressed * z, atol=0.05, rtol=0.02)


def test_the_linear_path_passes_by_the_transformer(config):
    """A change of one frame of z reaches that frame alone, and every frame through the blocks."""
    config = replace(config, backbone=replace(config.backbone, linear_path=True))
    path, given = stirred(config).backbone.linear_path, inputs(config)
    time = torch.randn(BATCH, config.backbone.width)
    other = given[0].clone()
    other[:, 3] += 1.0
    changed = path(other, given[1], time) != path(given[0], given[1], time)
    assert changed[:, 3].all() and not changed[:, :3].any() and not changed[:, 4:].any()
    model = stirred(config)
    model(*given).square().sum().backward()
    assert idle(model) == UNREAD


def test_fusion_adds_nothing_at_first(config):
    """Without gates and queries the tokens only pass, and that is how the whole module begins."""
    model, given = AudioX(config), inputs(config)
    plain = AudioX(replace(config, fusion=replace(config.fusion, enabled=False)))
    state = {k: v for k, v in model.state_dict().items() if k in plain.state_dict()}
    load_strict(plain, state)
    torch.testing.assert_close(model.encode(*given[2:])[0], plain.encode(*given[2:])[0])


def test_every_parameter_learns(config):
    model, given = stirred(config), inputs(config)
    model(*given).square().sum().backward()
    assert idle(model) == UNREAD


def idle(model):
    return {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}


# The last block's condition stream is only attended to: nobody reads what its own queries find.
UNREAD = {"backbone.blocks.1.condition.q_norm"}


def test_checkpointing_changes_no_gradient(config):
    model, given = stirred(config), inputs(config)
    gradients = []
    for checkpointing in (False, True):
        model.backbone.checkpointing = checkpointing
        model.zero_grad()
        model(*given).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_features_after_some_blocks(config):
    config = replace(config, backbone=replace(config.backbone, depth=3))
    model, given = stirred(config), inputs(config)
    features = [model(*given, n_blocks=n) for n in range(4)]
    assert all(f.shape == (BATCH, config.codec.frames, config.backbone.width) for f in features)
    assert torch.equal(features[0], model.backbone.latent_in(given[0]) + model.backbone.seconds_latent())

    time = torch.nn.functional.silu(model.backbone.time(given[1]))
    shift, scale = model.backbone.modulation_out(time).chunk(2, dim=-1)
    whole = model.backbone.latent_out(layer_norm_modulate(features[3], shift, scale))
    torch.testing.assert_close(whole, model(*given))

    with torch.no_grad():
        for parameter in model.backbone.blocks[2].parameters():
            parameter.add_(1)
    assert torch.equal(features[2], model(*given, n_blocks=2))
    assert not torch.equal(features[3], model(*given, n_blocks=3))
    several = model(*given, **trunk_options(3, 2))
    assert feature_depths(3, 2) == (2, 3) and feature_depths(6, 3) == (2, 4, 6)
    assert torch.equal(several, torch.stack([model(*given, n_blocks=n) for n in (2, 3)], 1))
    scores = DepthHeads(config.backbone.width, 2)(several)
    assert scores.shape == (BATCH, 2 * config.codec.frames)


def test_bfloat16_is_near(config):
    model, given = stirred(config), inputs(config)
    reference = model(*given)
    low = model.to(torch.bfloat16)(*(x if x.dtype == torch.int64 or x.ndim == 1 else x.bfloat16() for x in given))
    assert low.dtype == torch.bfloat16
    assert (low.float() - reference).square().mean() < 0.02**2 * reference.square().mean() * 4


class TestPositions:
    def test_the_same_moment_has_the_same_angle_at_any_rate(self, config):
        """Video of twice the latents' rate, pooled by two: token i of each modality lies at (i + 1/2) / rate."""
        rate = config.codec.rate
        video = replace(config.video, motion_rate=2 * rate, steps=2 * config.codec.frames, pool=2)
        model = AudioX(replace(config, video=video))
        n = config.codec.frames
        latent = model.backbone.rope_latent()
        condition = model.backbone.rope_condition()
        for ours, theirs in zip(latent, condition, strict=True):
            torch.testing.assert_close(theirs[:n], ours)  # video
            torch.testing.assert_close(theirs[n:], ours)  # audio

    def test_scores_depend_on_time_differences(self):
        def rotate(x, seconds):
            cos, sin = rope_table(torch.tensor([seconds]), 21.5, x.shape[-1])
            a, b = x.chunk(2, -1)
            return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)

        q, k = torch.randn(2, 1, 32)
        first = rotate(q, 1.0) @ rotate(k, 1.3).T
        torch.testing.assert_close(rotate(q, 7.5) @ rotate(k, 7.8).T, first, atol=1e-4, rtol=1e-4)
        assert (rotate(q, 7.5) @ rotate(k, 7.9).T - first).abs() > 1e-3

    def test_text_has_no_position(self, config):
        model = AudioX(config)
        n = config.video.tokens + config.codec.frames
        cos, sin = model.backbone._condition_rope(torch.zeros(1, n + 5, config.backbone.width))
        assert cos.shape == (n + 5, config.backbone.width // config.backbone.heads // 2)
        assert torch.equal(cos[n:], torch.ones(5, cos.shape[1])) and torch.equal(sin[n:], torch.zeros(5, cos.shape[1]))
        assert sin[:n].abs().sum(1).min() > 0

    def test_positions_stay_exact_in_a_model_cast_to_bfloat16(self, config):
        model = AudioX(config).to(torch.bfloat16)
        assert all(x.dtype == torch.float32 for x in model.backbone.rope_latent())

    def test_positions_go_where_the_model_goes(self, config):
        """Copied when it is moved, not in every step, which would wait for the device."""
        model = AudioX(config).to("meta")
        fixed = [
            tensor for module in model.modules() if isinstance(module, ConstantTensors) for tensor in module.tensors
        ]
        assert len(fixed) == 2 * 5 + 4  # rotations of two streams, three transformers; seconds of all but the queries
        assert all(tensor.is_meta and tensor.dtype == torch.float32 for tensor in fixed)

    def test_a_token_without_a_position_is_not_rotated(self):
        cos, sin = RopeTable(torch.tensor([torch.nan, 1.0]), 1.0, 8)()
        assert torch.equal(cos[0], torch.ones(4)) and torch.equal(sin[0], torch.zeros(4))

    def test_synchformers_grid(self):
        """Segments of 16 frames overlap by half: eight features of two frames each, then the times go back."""
        config = load_pretrain_config(ROOT / "configs" / "2p7b.json").model
        seconds = video_seconds(config.video)
        assert seconds.shape == (240,)
        segments = (seconds.view(30, 8) * 25).round()
        torch.testing.assert_close(segments / 25, seconds.view(30, 8))
        assert segments[0].tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
        assert (segments[1:, 0] - segments[:-1, -1]).unique().tolist() == [-6]
        assert segments.diff(dim=0).unique().tolist() == [8]
        assert segments.max() + 1 <= 25 * config.codec.seconds  # the last feature's two frames are in the clip
        pooled = AudioX(small_but_video(config)).conditioner.seconds[:120]
        torch.testing.assert_close(pooled, seconds.view(120, 2).mean(1))


def small_but_video(config):
    """The large model's tokens in a narrow network."""
    narrow = {"width": 32, "depth": 1, "heads": 2}
    return replace(
        config,
        video_temporal=replace(config.video_temporal, **narrow),
        audio_temporal=replace(config.audio_temporal, **narrow),
        fusion=replace(config.fusion, **narrow),
        backbone=replace(config.backbone, **narrow, mlp_hidden=32),
    )


FUSIONS = {
    "no gates": {"gates": False},
    "no queries": {"attention": False},
    "neither": {"gates": False, "attention": False},
}


@pytest.mark.parametrize("variant", [*FUSIONS, "disabled"])
def test_variants_of_fusion(config, variant):
    smaller = replace(config, fusion=replace(config.fusion, **FUSIONS.get(variant, {"enabled": False})))
    model, given = stirred(smaller), inputs(config)
    assert model(*given).isfinite().all()
    model(*given).square().sum().backward()
    assert idle(model) == UNREAD
    whole, parts = count_parameters(AudioX(config)), count_parameters(model)
    assert parts["fusion"] < whole["fusion"]
    assert (parts["fusion"] == 0) == (variant in ("neither", "disabled"))
    assert parts["total"] - parts["fusion"] == whole["total"] - whole["fusion"]
    garbage = given[4].clone()
    garbage[0, given[5][0] :] = 1e3
    assert torch.equal(model(*given[:4], garbage, given[5]), model(*given))


def test_the_same_seed_makes_the_same_model(config):
    def make(seed):
        torch.manual_seed(seed)
        return AudioX(config).state_dict()

    first, again, other = make(0), make(0), make(1)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["backbone.latent_in.weight"], other["backbone.latent_in.weight"])


def test_a_configuration_survives_json(config):
    assert strict.parse(type(config), json.loads(json.dumps(strict.to_dict(config)))) == config
