"""A small convolutional network that annotates sound: which events, with start and end, which instrument, which tempo.

It replaces the multimodal language model of the paper's benchmark (appendix A-C); its embedding replaces PANNs' or
VGGish's in Fréchet distances. B batch, T frames, W width, K categories, I instruments, J tempi, E embedding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoders.embedded import mel_filters

LOG_FLOOR = 1e-4  # mel magnitude
LOG_CENTRE, LOG_SPREAD = -5.5, 2.5  # of log-mel magnitudes over the embedded scenes


@dataclass(frozen=True)
class JudgeConfig:
    """The names that the judge knows, and its size. Frames are `hop`/`sample_rate` seconds apart."""

    categories: tuple[str, ...]
    instruments: tuple[str, ...]
    tempi: tuple[int, ...]  # beats per minute
    sample_rate: int = 8000
    hop: int = 128
    window: int = 512
    mels: int = 64
    width: int = 128
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    embedding: int = 64

    @property
    def frame_seconds(self) -> float:
        return self.hop / self.sample_rate


@dataclass(frozen=True)
class JudgeOutput:
    """Logits, and the embedding of a clip."""

    activity: Tensor  # (B, T, K): does it sound in this frame?
    onset: Tensor  # (B, T, K): does it start in this frame?
    presence: Tensor  # (B, K + I): is the category, or the instrument, anywhere in the clip?
    tempo: Tensor  # (B, J)
    embedding: Tensor  # (B, E)

    def class_probabilities(self) -> Tensor:
        """(B, K + I), each row summing to 1: independent presences brought to one distribution, as KL and the
        inception score need it."""
        present = self.presence.float().sigmoid()
        return present / present.sum(dim=1, keepdim=True)


class ResidualBlock(nn.Module):
    """Dilated convolution over time, then a pointwise one, around a residual."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.time = nn.Conv1d(width, width, 5, padding=2 * dilation, dilation=dilation)
        self.point = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, W, T) -> (B, W, T)."""
        return x + self.point(F.gelu(self.time(self.norm(x))))


class Judge(nn.Module):
    """Waveform to logits; frame i is centred on sample (i + ½)·hop."""

    filters: Tensor
    taper: Tensor

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        width, names = config.width, len(config.categories)
        self.register_buffer("filters", mel_filters(config.sample_rate, config.mels, config.window), persistent=False)
        self.register_buffer("taper", torch.hann_window(config.window), persistent=False)
        self.stem = nn.Conv1d(config.mels, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width, dilation) for dilation in config.dilations)
        self.norm = nn.BatchNorm1d(width)
        self.frame_head = nn.Conv1d(width, 2 * names, 1)
        self.pool = nn.Linear(3 * width, config.embedding)
        self.presence_head = nn.Linear(config.embedding, names + len(config.instruments))
        self.tempo_head = nn.Linear(config.embedding, len(config.tempi))

    def spectrogram(self, wave: Tensor) -> Tensor:
        """wave (B, 1, samples) -> normalised log-mel (B, mels, T), in float32 whatever the autocast."""
        with torch.autocast(wave.device.type, enabled=False):
            pad = (self.config.window - self.config.hop) // 2
            frames = F.pad(wave[:, 0].float(), (pad, pad)).unfold(1, self.config.window, self.config.hop)
            magnitude = torch.fft.rfft(frames * self.taper).abs()  # (B, T, bins)
            log = torch.log((magnitude @ self.filters.T).clamp_min(LOG_FLOOR))
            return ((log - LOG_CENTRE) / LOG_SPREAD).transpose(1, 2)

    def forward(self, wave: Tensor) -> JudgeOutput:
        """wave (B, 1, samples) in [-1, 1], samples a multiple of the hop."""
        return self.listen(self.spectrogram(wave))

    def listen(self, spectrogram: Tensor) -> JudgeOutput:
        """Normalised log-mel (B, mels, T) -> logits."""
        x = self.stem(spectrogram)
        for block in self.blocks:
            x = block(x)
        x = F.gelu(self.norm(x))
        activity, onset = self.frame_head(x).transpose(1, 2).chunk(2, dim=2)
        # Mean and spread tell how much, the maximum whether at all.
        pooled = torch.cat((x.mean(dim=2), x.amax(dim=2), x.float().std(dim=2).to(x.dtype)), dim=1)
        embedding = F.gelu(self.pool(pooled))
        return JudgeOutput(activity, onset, self.presence_head(embedding), self.tempo_head(embedding), embedding)
