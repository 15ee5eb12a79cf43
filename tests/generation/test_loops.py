"""Sounds whose end continues in their beginning, from a small model with random weights."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from audiox_trainer.trainer.generation.loops import decode_loop, seam
from audiox_trainer.trainer.generation.prompts import Prompt
from tests.helpers.made_sounds import CLIP, sound


def test_a_loop_joins_its_end_to_its_beginning(generator, tmp_path):
    for keys, samples in (({}, CLIP), ({"seconds": 1.5}, 12_000), ({"seconds": 0.3}, 2400)):
        looped = sound(generator, text="a bell", loop=True, **keys)
        assert looped.wave.shape == (1, samples) and looped.finished
        joint, inside = seam(looped.wave)
        assert joint <= inside
    soundfile.write(tmp_path / "given.wav", 0.3 * np.sin(np.arange(12_000) / 5), 8000)
    varied = [sound(generator, text="a bell", loop=True, vary=tmp_path / "given.wav", level=x) for x in (0.1, 0.9)]
    assert [each.samples for each in varied] == [12_000, 12_000] and not torch.equal(varied[0].wave, varied[1].wave)
    with pytest.raises(ValueError, match=r"^loop: 3\.000 s; a loop is at most one clip of these weights, 2\.048 s"):
        sound(generator, text="a bell", loop=True, seconds=3.0)


def test_a_loop_is_guided_at_an_interval(generator):
    """The last step has two evaluations. Guidance at no level of the sampling is the same as none."""
    keys = {"text": "a bell", "loop": True, "steps": 4}
    plain, never, half = (
        sound(generator, **keys, guidance=scale, guidance_interval=levels).wave
        for scale, levels in ((1.0, None), (3.0, "0.01-0.02"), (3.0, "0.6-1"))
    )
    assert torch.equal(plain, never) and not torch.allclose(plain, half, atol=1e-3)


def test_loops_and_other_sounds_in_one_batch(generator, one_thread):
    prompts = [Prompt(text="a bell", loop=True, seed=3), Prompt(text="a bell", seed=4)]
    prompts += [Prompt(text="a kick", loop=True, seconds=1.0, seed=5)]
    together = generator.generate_sounds(prompts)
    for each, made in zip(prompts, together, strict=True):
        assert torch.equal(made.wave, generator.generate_sounds([each])[0].wave)


def test_a_turn_may_begin_anywhere(generator):
    """With a codec that looks at neighbouring frames only; at other lengths the pitch changes, the joint does not."""

    class Smoothing:
        def decode(self, latents):
            wave = latents[:, :, :1].repeat_interleave(64, dim=1).transpose(1, 2)
            return torch.nn.functional.avg_pool1d(wave, 33, stride=1, padding=16)

    config = replace(generator.model.config.codec, hop=64)
    latents = torch.rand(2, 20, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    made = decode_loop(Smoothing(), config, latents, 1280)
    moved = decode_loop(Smoothing(), config, latents.roll(7, dims=1), 1280)
    torch.testing.assert_close(moved, made.roll(7 * 64, dims=2))
    for wave in (made[0], decode_loop(Smoothing(), config, latents, 1300)[0]):
        joint, inside = seam(wave)
        assert wave.abs().max() > 0.2 and joint <= 1.01 * inside
