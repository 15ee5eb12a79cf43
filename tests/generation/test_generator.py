"""Samplers against velocities whose answer is known, and the generator with random weights."""

from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor

from audiox_trainer.kernels.ops import KernelsConfig
from audiox_trainer.models.audiox import SamplingConfig
from audiox_trainer.models.sampler import euler, guidance_scales, nfe, renoise, sample, shifted_timesteps, with_guidance
from audiox_trainer.trainer.evaluation.held_out import draw_held_out
from audiox_trainer.trainer.generation.clip_request import ClipRequest, concatenate_requests
from audiox_trainer.trainer.generation.generator import Generator
from audiox_trainer.trainer.generation.user_media import encode_video_clips
from audiox_trainer.trainer.scenes.synth import FRAME_RATE, SIZE, render_video
from tests.helpers.random_weights import random_weights

B, L, C = 3, 8, 16


def oracle(data: Tensor):
    """The velocity of the straight path to `data` (B, L, C): z_t = t·z_1 + (1 - t)·z_0, so v = (z_t - z_0)/t."""
    return lambda z, t: (z - data) / t[:, None, None]


def test_levels_shift_towards_noise():
    assert shifted_timesteps(4, 1.0) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert shifted_timesteps(2, 4.0) == pytest.approx([1.0, 0.8, 0.0])


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_euler_with_an_oracle_returns_the_data(steps):
    data, noise = torch.randn(2, B, L, C)
    assert torch.allclose(euler(oracle(data), noise, shifted_timesteps(steps)), data, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 4])
def test_renoise_with_an_oracle_returns_the_data(steps):
    data, noise = torch.randn(2, B, L, C)
    seen = []

    def velocity(z, t):
        seen.append((z, float(t[0])))
        return oracle(data)(z, t)

    fresh = torch.randn(steps, B, L, C)
    assert torch.allclose(renoise(velocity, noise, shifted_timesteps(steps), iter(fresh).__next__), data, atol=1e-5)
    assert [t for _, t in seen] == pytest.approx([1 - k / steps for k in range(steps)])
    for k, (z, t) in enumerate(seen[1:]):
        assert torch.allclose(z, t * fresh[k] + (1 - t) * data, atol=1e-5)


@pytest.mark.parametrize("kind", ["euler", "renoise"])
def test_given_latents_are_kept_to_the_bit(kind):
    noise, known = torch.randn(2, B, L, C)
    mask = (torch.rand(B, L, 1) < 0.5).float()
    wrong = lambda z, t: torch.randn_like(z)  # noqa: E731
    if kind == "euler":
        z = euler(wrong, noise, shifted_timesteps(3), known, mask)
    else:
        z = renoise(wrong, noise, shifted_timesteps(3), lambda: torch.randn(B, L, C), known, mask)
    assert torch.equal(z[mask.expand_as(z) > 0], known[mask.expand_as(z) > 0])
    assert not torch.isclose(z, known)[mask.expand_as(z) == 0].all()


def test_euler_follows_the_given_path_on_the_way():
    noise, known = torch.randn(2, B, L, C)
    seen = []

    def velocity(z, t):
        seen.append((z, float(t[0])))
        return torch.zeros_like(z)

    euler(velocity, noise, shifted_timesteps(4), known, torch.ones(B, L, 1))
    for z, t in seen:
        assert torch.allclose(z, t * noise + (1 - t) * known, atol=1e-6)


def test_guidance_in_one_batch_equals_two_forwards():
    table = torch.randn(16, C)

    def backbone(z, t, condition, length):
        """Depends on everything, and on a condition's tokens only up to its length."""
        valid = torch.arange(condition.shape[1]) < length[:, None]
        mean = (condition * valid[..., None]).sum(1) / length[:, None]
        return z * t[:, None, None] + (mean @ table)[:, None]

    condition = (torch.randn(B, 5, 16), torch.tensor([5, 2, 4]))
    unconditional = (torch.randn(B, 3, 16), torch.tensor([3, 3, 1]))
    z, t = torch.randn(B, L, C), torch.rand(B)
    v, v_uncond = backbone(z, t, *condition), backbone(z, t, *unconditional)
    for guidance, expected in ((1.0, v), (3.0, v_uncond + 3 * (v - v_uncond)), (0.0, v_uncond)):
        velocity = with_guidance(lambda *h: lambda z, t: backbone(z, t, *h), condition, unconditional, [guidance])
        assert torch.allclose(velocity(z, t), expected, atol=1e-5)


def test_guidance_within_an_interval_evaluates_both_branches_there_alone():
    """By hand: four Euler steps, of which the two between 0.4 and 0.8 are guided."""
    asked = []

    def conditioned(condition, length):
        def velocity(z, t):
            asked.append(len(z))
            return z * t[:, None, None] + condition.mean((1, 2))[:, None, None]

        return velocity

    condition, unconditional = torch.full((2, 3, 4), 1.0), torch.full((2, 3, 4), 0.25)
    lengths = torch.full((2,), 3)
    sampling = SamplingConfig("euler", 4, 3.0, guidance_interval=(0.4, 0.8))
    scales = guidance_scales(sampling)
    assert scales == [1, 3, 3, 1] and nfe(sampling) == 6
    velocity = with_guidance(conditioned, (condition, lengths), (unconditional, lengths), scales)
    z = noise = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    found = sample(velocity, lambda: noise, sampling)
    for t, shift in ((1.0, 1.0), (0.75, 0.25 + 3 * 0.75), (0.5, 0.25 + 3 * 0.75), (0.25, 1.0)):
        z = z - 0.25 * (z * t + shift)
    torch.testing.assert_close(found, z)
    assert asked == [2, 4, 4, 2]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return random_weights(tmp_path_factory.mktemp("weights") / "random", SamplingConfig("euler", 3, 2.0))


def full_request(generator: Generator, n: int) -> ClipRequest:
    config = generator.model.config
    make = torch.Generator().manual_seed(1)
    given = torch.ones(n, config.codec.frames)
    for i in range(n):
        given[i, 2 : 4 + i] = 0
    return ClipRequest(
        ["a bell", "two kicks, then a siren and three dogs", "a hiss from 0.2 to 1.4 seconds", ""][:n],
        video=torch.randn(n, config.video.steps, config.video.dim, generator=make),
        audio=torch.randn(n, config.codec.frames, config.codec.latent_channels, generator=make),
        given_mask=given,
    )


def test_the_weights_say_how_they_are_sampled(generator):
    assert generator.sampling == SamplingConfig("euler", 3, 2.0)


def test_a_seed_decides(generator):
    request = ClipRequest(["a bell", "a kick"])
    first = generator.latents(request, 5)
    assert torch.equal(first, generator.latents(request, 5))
    assert not torch.allclose(first, generator.latents(request, 6))
    assert torch.isfinite(first).all()


@pytest.mark.parametrize("sampling", [SamplingConfig("euler", 3, 2.0), SamplingConfig("renoise", 2, 1.0)])
def test_a_sample_does_not_depend_on_its_batch(generator, sampling):
    request = full_request(generator, 4)
    together = generator.latents(request, 10, sampling)
    for i in range(4):
        cut = slice(i, i + 1)
        alone = ClipRequest(request.texts[cut], request.video[cut], request.audio[cut], request.given_mask[cut])
        assert torch.allclose(together[cut], generator.latents(alone, 10 + i, sampling), atol=1e-4)


@pytest.mark.parametrize("kind", ["euler", "renoise"])
def test_the_generator_keeps_what_is_given(generator, kind):
    request = full_request(generator, 4)
    latents = generator.latents(request, 0, SamplingConfig(kind, 2, 2.0))
    kept = request.given_mask > 0
    assert torch.equal(latents[kept], request.audio[kept])
    assert not torch.isclose(latents[~kept], request.audio[~kept]).all()


def test_every_condition_has_a_say(generator):
    plain = ClipRequest(["a bell"])
    full = full_request(generator, 1)
    others = (ClipRequest(["a kick"]), ClipRequest(["a bell"], video=full.video))
    for other in others:
        assert not torch.allclose(generator.latents(plain, 0), generator.latents(other, 0), atol=1e-4)
    # What is given has a say in the hole too, and latents outside `given` have none anywhere.
    hole = full.given_mask[0] == 0
    louder = ClipRequest(full.texts, full.video, full.audio + 3 * full.given_mask[..., None], full.given_mask)
    assert not torch.allclose(generator.latents(full, 0)[0, hole], generator.latents(louder, 0)[0, hole], atol=1e-4)
    hidden = ClipRequest(full.texts, full.video, full.audio + 3 * (1 - full.given_mask[..., None]), full.given_mask)
    assert torch.allclose(generator.latents(full, 0), generator.latents(hidden, 0), atol=1e-6)


def test_guidance_is_the_two_branches_combined(generator):
    """One step from noise is linear in the velocity."""
    request = full_request(generator, 2)
    request = ClipRequest(request.texts, request.video)
    nothing = ClipRequest(["", ""])
    one = SamplingConfig("euler", 1, 1.0)
    conditional, unconditional = (generator.latents(r, 0, one) for r in (request, nothing))
    guided_ones = generator.latents(request, 0, SamplingConfig("euler", 1, 4.0))
    assert torch.allclose(guided_ones, unconditional + 4 * (conditional - unconditional), atol=1e-4)


def test_guidance_leads_away_from_a_negative_text(generator):
    """It takes the place of the empty text, in samples that have one."""
    request = ClipRequest(["a bell", "a kick"], negatives=["", "a hiss"])
    one = SamplingConfig("euler", 1, 1.0)
    texts = (request.texts, ["", ""], ["a hiss", "a hiss"])
    conditional, empty, hiss = (generator.latents(ClipRequest(t), 0, one) for t in texts)
    guided = generator.latents(request, 0, SamplingConfig("euler", 1, 4.0))
    expected = torch.stack((empty[0], hiss[1])) + 4 * (conditional - torch.stack((empty[0], hiss[1])))
    assert torch.allclose(guided, expected, atol=1e-4) and not torch.allclose(empty[1], hiss[1], atol=1e-3)
    joined = concatenate_requests(
        [ClipRequest(["a bell"]), ClipRequest(["a kick"], negatives=["a hiss"])], generator.model.config
    )
    assert torch.equal(generator.latents(joined, 0), generator.latents(request, 0))
    with pytest.raises(ValueError, match="negative: acts through guidance, and this sound has none"):
        generator.generate(text="a bell", negative="a hiss", guidance=1.0)


@pytest.mark.parametrize("kind", ["euler", "renoise"])
def test_a_variation_begins_at_its_level(generator, kind):
    """Nearer to the sound the lower the level; the last of its steps are those of a whole sampling."""
    config, sampling = generator.model.config, SamplingConfig(kind, 3, 2.0)
    sound = torch.randn(1, config.codec.frames, config.codec.latent_channels)
    away = []
    for level in (0.01, 0.5, 0.99):
        varied = generator.latents(ClipRequest(["a bell"], initial=sound, level=level), 0, sampling)
        away.append(float((varied - sound).norm()))
    assert away == sorted(away) and away[0] < 0.1 * away[2]
    noise = torch.randn(1, *sound.shape[1:], generator=torch.Generator().manual_seed(0))
    seen = []

    def velocity(z, t):
        seen.append((float(t), z.clone()))
        return torch.zeros_like(z)

    generator.integrate(velocity, ClipRequest(["a bell"], initial=sound, level=0.6), 0, sampling)
    assert [t for t, _ in seen] == pytest.approx([0.6, 0.4, 0.2])
    torch.testing.assert_close(seen[0][1], 0.6 * noise + 0.4 * sound)


def test_levels_known_beforehand_change_nothing(generator):
    """The backbone's features of one level, taken for all samples, against each sample's own level."""
    backbone, config = generator.model.backbone, generator.model.config
    z = torch.randn(3, config.codec.frames, config.codec.latent_channels)
    condition, length = generator._encode(generator.conditions(ClipRequest(["a bell", "two kicks", ""])))
    sampling = SamplingConfig(steps=3, shift=2.0)
    known = generator.timestep_features(sampling)
    generator.timestep_features(SamplingConfig(steps=2))
    assert generator.timestep_features(sampling) is known  # kept, whatever is sampled between
    for t, level in zip(shifted_timesteps(3, 2.0), known, strict=False):
        with torch.no_grad():
            expected = backbone(z, torch.full((3,), t), condition, length)
            actual = backbone(z, level.expand(3), condition, length)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"launch/convert\.py"):
        Generator(tmp_path)


@pytest.mark.parametrize(("device", "complaint"), [("gpu", "device: 'gpu' cannot be used"), ("cuda:63", "here: cpu")])
def test_a_device_that_is_not_here_is_refused(weights, device, complaint):
    with pytest.raises(ValueError, match=complaint):
        Generator(weights, device)


def test_the_kernels_can_be_chosen(weights, tmp_path):
    assert set(Generator(weights, "cpu").kernels.names.values()) == {"reference"}
    chosen = Generator(weights, "cpu", kernels=KernelsConfig(joint_attention="sdpa")).kernels
    assert chosen.names["joint_attention"] == "sdpa" and chosen.reasons["joint_attention"] == "as configured"
    with pytest.raises(FileNotFoundError, match=r"kernels\.benchmark_file: .*none\.json is no file; launch/bench.py"):
        Generator(weights, "cpu", kernels=KernelsConfig(benchmark_file=str(tmp_path / "none.json")))


def test_a_video_gives_the_features_that_training_had(generator, tmp_path):
    """Lossless frames at the scenes' own rate, as shards have them from the scene itself."""
    config = generator.model.config
    unseen = draw_held_out(config, "audio", 2, seed=0)
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(FRAME_RATE))
        stream.width = stream.height = SIZE
        stream.pix_fmt = "bgr0"
        for frame in render_video(unseen.scenes[0]):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    (read,) = encode_video_clips(path, config, generator.encode_video, [0.0])
    assert torch.allclose(read, unseen.video[0], atol=0.02)
    assert not torch.allclose(read, unseen.video[1], atol=0.5)
