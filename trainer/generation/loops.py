"""Sounds that loop: latents on a circle become a wave whose end continues in its beginning.

B batch, F latent frames of the loop, C latent channels, c sound channels.
"""

import torch
from torch import Tensor

from ...models.config import CodecConfig
from ...models.encoders.base import AudioCodec

NEIGHBOURS = 16  # latent frames around the loop that are decoded with it, more than a decoder looks at
FADE = 0.01  # seconds


def loop_frames(samples: int, codec: CodecConfig) -> int:
    """The latent frames of a loop of so many samples."""
    return max(1, min(codec.frames, round(samples / codec.hop)))


def decode_loop(codec: AudioCodec, config: CodecConfig, latents: Tensor, samples: int) -> Tensor:
    """latents (B, F, C) of a circle -> wave (B, c, samples) of one turn.

    A codec that looks at neighbouring frames only gives the same sound wherever the turn begins. One that estimates
    phases does not, so what would follow the end fades over into the beginning. A turn of other than F·hop samples is
    stretched to its length, by half a latent frame at most.
    """
    frames = latents.shape[1]
    around = torch.arange(-NEIGHBOURS, frames + NEIGHBOURS, device=latents.device) % frames
    wave = codec.decode(latents[:, around])
    begin, turn = NEIGHBOURS * config.hop, frames * config.hop
    end, fade = begin + turn, round(FADE * config.sample_rate)
    looped = wave[..., begin:end].clone()
    looped[..., :fade] = torch.lerp(
        wave[..., end : end + fade], looped[..., :fade], torch.arange(fade, device=wave.device) / fade
    )
    if samples == turn:
        return looped
    spectrum = torch.fft.rfft(looped.float(), norm="forward")  # a periodic sound has no end that would ring
    return torch.fft.irfft(spectrum, n=samples, norm="forward").clamp(-1, 1)


def seam(wave: Tensor) -> tuple[float, float]:
    """The jump of a wave (c, n) from its last sample to its first, and the largest one within."""
    joint = (wave[:, 0] - wave[:, -1]).abs().max()
    return float(joint), float(wave.diff(dim=1).abs().max())
