"""Codec and encoders that need no downloaded weights: a log-mel spectrogram, hashed words, pooled frames.

They stand behind the same interfaces as the real ones, so that everything after them is exercised on any machine.
B batch, L latent frames, C latent channels, T text tokens, D feature width, N frames.
"""

import re
import zlib
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..config import CodecConfig, TextConfig, VideoConfig

MEL_HOP = 256  # samples between spectrogram frames; a latent frame stacks hop / MEL_HOP of them
WINDOW = 512
CHUNK = 4  # clips whose phases are reconstructed together
FLOOR = 0.03  # magnitudes below are silence: their texture would be most of what a latent holds
LOG_CENTRE, LOG_SPREAD = -2.6, 1.65  # of log-mel magnitudes over the embedded scenes, so that latents are about N(0, 1)


def mel_filters(sample_rate: int, mels: int, window: int = WINDOW) -> Tensor:
    """Triangular filters (mels, window/2 + 1) on the HTK mel scale, each summing to 1."""
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    bins = np.linspace(0, sample_rate / 2, window // 2 + 1)
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    weights = np.maximum(0, np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)))
    narrow = weights.sum(1) == 0  # a filter between two bins takes the nearest one
    weights[narrow, np.abs(bins - centre[narrow]).argmin(1)] = 1
    return torch.from_numpy(weights / weights.sum(1, keepdims=True)).float()


class LogMelCodec:
    """Normalised log-mel magnitudes, two or more frames stacked to a latent; sound comes back by Griffin-Lim.

    It is deterministic: the latents' standard deviation is zero.
    """

    def __init__(self, config: CodecConfig) -> None:
        if config.audio_channels != 1 or config.hop % MEL_HOP or config.latent_channels % (config.hop // MEL_HOP):
            raise ValueError(
                f"codec logmel: wants 1 audio channel, a hop that is a multiple of {MEL_HOP} and as many mel bands in "
                f"each stacked frame; got audio_channels {config.audio_channels}, hop {config.hop}, "
                f"latent_channels {config.latent_channels}"
            )
        self.config = config
        self.stack = config.hop // MEL_HOP
        self.filters = mel_filters(config.sample_rate, config.latent_channels // self.stack)
        self.inverse = torch.linalg.pinv(self.filters)
        self.window = torch.hann_window(WINDOW)

    def encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """wave (B, 1, samples), samples a multiple of the hop -> mean (B, L, C) and a standard deviation of zeros."""
        magnitude = _stft(wave[:, 0].float(), self.window, MEL_HOP).abs()  # (B, frames, bins)
        mel = magnitude @ self.filters.T
        log = (torch.log(mel.clamp_min(FLOOR)) - LOG_CENTRE) / LOG_SPREAD
        latents = rearrange(log, "b (l s) m -> b l (s m)", s=self.stack)
        return latents, torch.zeros_like(latents)

    def decode(self, latents: Tensor, iterations: int = 32) -> Tensor:
        """latents (B, L, C) -> wave (B, 1, L·hop). The phase starts from a fixed seed, so decoding is deterministic."""
        log = rearrange(latents.float(), "b l (s m) -> b m (l s)", s=self.stack) * LOG_SPREAD + LOG_CENTRE
        # Half the hop, so that windows overlap by three quarters and the phases can agree.
        log = F.interpolate(log, scale_factor=2, mode="linear", align_corners=False)
        mel = torch.exp(log.clamp(max=5.0)).transpose(1, 2)
        mel = torch.where(mel <= 1.5 * FLOOR, torch.zeros_like(mel), mel)
        magnitude = (mel @ self.inverse.T).clamp_min(0)  # (B, frames, bins)
        # A few clips at a time: the spectra of more do not fit into a core's cache, and steps would wait for memory.
        parts = [_griffin_lim(m, self.window, MEL_HOP // 2, iterations) for m in magnitude.split(CHUNK)]
        return torch.cat(parts).clamp(-1, 1).unsqueeze(1)


def _stft(wave: Tensor, window: Tensor, hop: int) -> Tensor:
    """wave (B, samples) -> (B, samples/hop, bins) complex, frame i centred at (i + ½)·hop."""
    pad = (window.shape[0] - hop) // 2
    frames = F.pad(wave, (pad, pad)).unfold(1, window.shape[0], hop)
    return torch.fft.rfft(frames * window)


def _istft(spectrum: Tensor, window: Tensor, hop: int, scale: Tensor) -> Tensor:
    """The least-squares inverse of `_stft`: windowed overlap-add, times the `_overlap_scale`."""
    size, count = window.shape[0], spectrum.shape[1]
    frames = torch.fft.irfft(spectrum, n=size, norm="forward").mul_(window)  # without 1/size, which is in the scale
    pad = (size - hop) // 2
    return _overlap_add(frames, hop).mul_(scale)[:, pad : (count - 1) * hop + size - pad]


def _overlap_scale(window: Tensor, hop: int, count: int) -> Tensor:
    """1 over the size and the sum of squared windows of `count` frames: (1, (count - 1)·hop + size)."""
    weight = _overlap_add(window.square().expand(1, count, -1), hop)
    return 1 / (window.shape[0] * weight.clamp_min(1e-3))


def _overlap_add(frames: Tensor, hop: int) -> Tensor:
    """frames (B, N, size), size a multiple of the hop -> (B, (N - 1)·hop + size)."""
    overlap = frames.shape[2] // hop
    parts = rearrange(frames, "b n (k h) -> k b n h", k=overlap)
    total = frames.new_zeros(frames.shape[0], frames.shape[1] + overlap - 1, hop)
    for k, part in enumerate(parts):
        total[:, k : k + frames.shape[1]] += part
    return total.flatten(1)


def _griffin_lim(magnitude: Tensor, window: Tensor, hop: int, iterations: int) -> Tensor:
    """Fast Griffin-Lim (Perraudin et al., 2013) with momentum 0.99: magnitude (B, frames, bins) -> wave."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(magnitude.shape[1:], generator=generator) * 2 * torch.pi  # the same for every clip of a batch
    spectrum = magnitude * torch.polar(torch.ones_like(angle), angle)
    scale = _overlap_scale(window, hop, magnitude.shape[1])
    previous = torch.zeros(*spectrum.shape, 2)
    for _ in range(iterations):
        # Real pairs: torch's complex abs and division cost more than the transforms.
        rebuilt = torch.view_as_real(_stft(_istft(spectrum, window, hop, scale), window, hop))
        accelerated = previous.lerp_(rebuilt, 1.99)  # rebuilt + 0.99·(rebuilt - previous)
        real, imaginary = accelerated.unbind(-1)
        power = real.square().addcmul_(imaginary, imaginary)
        spectrum = torch.view_as_complex(accelerated) * power.clamp_min_(1e-16).rsqrt_().mul_(magnitude)
        previous = rebuilt
    return _istft(spectrum, window, hop, scale)


class WordEncoder:
    """One token per word: a hash of its bytes, its value if it is a number, the word before it, and its position.

    Any word has a feature without a vocabulary, and related words ("bell", "bells") are near each other. The word
    before gives a token the context that a real encoder's features have, as in "two kicks" or "from 0.4".
    """

    def __init__(self, config: TextConfig) -> None:
        if config.dim < 32 or config.dim % 4:
            raise ValueError(f"text words: dim {config.dim} must be a multiple of 4 and at least 32")
        self.config = config
        self.own, self.before = config.dim // 2, config.dim // 4
        self.places = _sinusoids(torch.arange(config.max_tokens).float(), config.dim // 4, 100.0)

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """-> features (B, T, D), zero past each text's end, and lengths (B,)."""
        limit = self.config.max_tokens
        # The first token stands for "a text begins", so that an empty text has one too.
        words = [["\0", *re.findall(r"\d+(?:\.\d+)?|\w+|[^\w\s]", text.lower())][:limit] for text in texts]
        lengths = torch.tensor([len(w) for w in words])
        rounded = -(-int(lengths.max()) // self.config.pad_to_multiple_of) * self.config.pad_to_multiple_of
        features = torch.zeros(len(texts), min(rounded, limit), self.config.dim)
        # All words of the batch at once: of a training step on small models this is no small part.
        own = torch.stack([_word(w, self.own) for text in words for w in text])
        before = torch.stack([_word(w, self.before) for text in words for w in ("", *text[:-1])])
        places = torch.cat([self.places[: len(text)] for text in words])
        inside = torch.arange(features.shape[1]) < lengths.unsqueeze(1)
        features[inside] = torch.cat((own, before, places), dim=1)
        return features, lengths


@lru_cache(maxsize=65_536)
def _word(word: str, dim: int) -> Tensor:
    stem = _hashed(word[:-1] if len(word) > 3 and word.endswith("s") else word, dim)
    feature = stem + 0.5 * _hashed("word:" + word, dim)
    if re.fullmatch(r"\d+(\.\d+)?", word):
        feature = 0.5 * feature
        feature[: dim // 2] += _sinusoids(torch.tensor([float(word)]), dim // 2, 4.0)[0]
    return feature


def _hashed(text: str, dim: int) -> Tensor:
    generator = np.random.Generator(np.random.Philox(zlib.crc32(text.encode())))
    return torch.from_numpy(generator.standard_normal(dim, dtype=np.float32))


def _sinusoids(values: Tensor, dim: int, longest: float) -> Tensor:
    """(N,) -> (N, dim) with periods from 2·longest down to about a hundredth of that."""
    half = (dim + 1) // 2
    periods = 2 * longest * 0.01 ** (torch.arange(half) / max(half - 1, 1))
    angles = 2 * torch.pi * values[:, None] / periods
    return torch.cat((angles.sin(), angles.cos()), dim=1)[:, :dim] * 2**0.5


class FrameEncoder:
    """Frames pooled to a coarse grid for the images, differences between neighbours for the motion.

    A feature is a fixed random projection of (grid × grid × 3) values to D, scaled so that features of the embedded
    scenes vary by about 1, as those of text and sound do: small ones are learnt late.
    """

    GRID = 4

    def __init__(self, config: VideoConfig) -> None:
        self.config = config
        values = self.GRID * self.GRID * 3
        generator = torch.Generator().manual_seed(0)
        self.image = torch.randn(values, config.dim, generator=generator) * 12 / values**0.5
        self.motion = torch.randn(2 * values, config.dim, generator=generator) * 24 / values**0.5

    def __call__(self, images: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, N, 3, size, size) uint8, motion (B, steps, 3, size, size) uint8 -> (B, N, D), (B, steps, D)."""
        self.check_frames(motion.shape[1])
        change = torch.diff(self._pooled(motion), dim=1, prepend=self._pooled(motion[:, :1]))
        change = torch.cat((change.clamp_min(0), change.clamp_max(0)), dim=-1)  # appearing and vanishing
        return self._pooled(images) @ self.image, change @ self.motion

    def check_frames(self, count: int) -> None:
        """Raises ValueError where `count` motion frames of a clip are not as many as the configured steps."""
        if count != self.config.steps:
            raise ValueError(f"video: {count} motion frames, the configuration says {self.config.steps} steps")

    def _pooled(self, frames: Tensor) -> Tensor:
        batch = frames.shape[0]
        grid = F.adaptive_avg_pool2d(rearrange(frames.float() / 255, "b n c h w -> (b n) c h w"), self.GRID)
        return rearrange(grid, "(b n) c h w -> b n (h w c)", b=batch)
