"""VGGish (Hershey et al., 2017): an embedding of every 0.96 s, under the names of the weights in torchvggish.

B windows, n samples, T frames, M mel bands, F frequencies.
"""

import math

import torch
from torch import Tensor, nn

from .mel import mel_filters_htk

RATE = 16000  # Hz
WINDOW, HOP, FFT = 400, 160, 512  # samples: 25 ms, 10 ms, and the next power of two
MELS, LOWEST, HIGHEST = 64, 125.0, 7500.0  # Hz
OFFSET = 0.01  # added before the logarithm
FRAMES = 96  # of a window of 0.96 s; windows do not overlap
SHORTEST = ((FRAMES - 1) * HOP + WINDOW) / RATE  # seconds
EMBEDDING = 128
WIDTHS = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0)  # of convolutions; 0 halves time and frequency


def mel_matrix() -> Tensor:
    """(F, M), without the constant frequency."""
    matrix = mel_filters_htk(RATE, FFT, MELS, LOWEST, HIGHEST)
    matrix[0] = 0
    return matrix


def log_mel_windows(wave: Tensor) -> Tensor:
    """Mono sound (n,) at RATE -> windows (B, 1, T, M); what does not fill a window at the end is not used."""
    frames = wave.unfold(0, WINDOW, HOP)
    taper = 0.5 - 0.5 * torch.cos(2 * math.pi / WINDOW * torch.arange(WINDOW, dtype=torch.float64))  # periodic
    magnitude = torch.fft.rfft(frames.double() * taper.to(wave.device), FFT).abs()
    log_mel = torch.log(magnitude.float() @ mel_matrix().to(wave.device) + OFFSET)
    count = len(log_mel) // FRAMES
    return log_mel[: count * FRAMES].view(count, 1, FRAMES, MELS)


class VggishNetwork(nn.Module):
    """Windows to embeddings. The last linear layer's values are given as they are, before the activation that the
    release has after it, as tools for the Fréchet audio distance use them; no principal components."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS, hidden: int = 4096) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in widths:
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        flat = channels * (FRAMES >> widths.count(0)) * (MELS >> widths.count(0))
        self.embeddings = nn.Sequential(
            nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, EMBEDDING)
        )

    def forward(self, windows: Tensor) -> Tensor:
        """(B, 1, T, M) -> (B, 128)."""
        x = self.features(windows).permute(0, 2, 3, 1).flatten(1)  # TensorFlow's order: channels last
        embeddings: Tensor = self.embeddings(x)
        return embeddings
