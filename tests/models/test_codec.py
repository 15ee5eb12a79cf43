"""The embedded codec: its transforms invert each other, and a clip's sound does not depend on its batch."""

import pytest
import torch

from audiox_trainer.models.config import CodecConfig
from audiox_trainer.models.encoders.embedded import (
    CHUNK,
    WINDOW,
    LogMelCodec,
    _istft,
    _overlap_add,
    _overlap_scale,
    _stft,
)
from audiox_trainer.trainer.evaluation.judge_training import render_scenes
from audiox_trainer.trainer.scenes.scene import draw_scene


@pytest.fixture(scope="module")
def codec() -> LogMelCodec:
    return LogMelCodec(CodecConfig("logmel", 8000, 1, 512, 32, 128))


@pytest.fixture(scope="module")
def waves() -> torch.Tensor:
    return render_scenes([draw_scene(9, i, domain) for i in range(3) for domain in ("audio", "music")])


@pytest.mark.parametrize("hop", [128, 256])
def test_the_inverse_transform_gives_back_the_wave(hop):
    wave, window = torch.randn(3, 4096), torch.hann_window(WINDOW)
    spectrum = _stft(wave, window, hop)
    back = _istft(spectrum, window, hop, _overlap_scale(window, hop, spectrum.shape[1]))
    assert back.shape == wave.shape
    assert torch.allclose(back[:, hop:-hop], wave[:, hop:-hop], atol=1e-4)


def test_overlap_add_equals_a_fold():
    frames = torch.randn(2, 5, 12)
    expected = torch.nn.functional.fold(frames.transpose(1, 2), (1, 4 * 3 + 12), (1, 12), stride=(1, 3))[:, 0, 0]
    assert torch.allclose(_overlap_add(frames, 3), expected, atol=1e-6)


def test_decoding_keeps_the_latents(codec, waves):
    latents, deviation = codec.encode(waves)
    assert latents.shape == (6, 32, 128) and not deviation.any()
    back = codec.decode(latents)
    assert back.shape == waves.shape and back.abs().max() <= 1
    error = (codec.encode(back)[0] - latents).abs().mean()
    assert error < 0.25  # of latents with a standard deviation near 1


def test_a_clip_sounds_the_same_in_every_batch(codec, waves):
    latents, _ = codec.encode(waves)
    assert len(latents) > CHUNK
    together = codec.decode(latents)
    for i in (0, CHUNK):
        # Thirty-two iterations enlarge the last bits.
        assert torch.allclose(codec.decode(latents[i : i + 1])[0], together[i], atol=0.02)
    assert torch.equal(together, codec.decode(latents))
