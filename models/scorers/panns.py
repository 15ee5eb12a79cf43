"""Cnn14 of PANNs (Kong et al., 2020): tags of AudioSet, and an embedding, under the names of the released weights.

B clips, n samples, T frames, M mel bands, F frequencies.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES, MELS = 527, 64
FLOOR = 1e-10  # of a mel power
SHORTEST = 0.32  # seconds: five times half of the frames, of which one must be left


@dataclass(frozen=True)
class PannsFrontEnd:
    """Of the weights that are released; the window tells which they are."""

    window: int  # samples
    hop: int
    rate: int  # Hz


FRONT_ENDS = {
    f.window: f for f in (PannsFrontEnd(1024, 320, 32000), PannsFrontEnd(512, 160, 16000), PannsFrontEnd(256, 80, 8000))
}
WINDOW_KEY = "spectrogram_extractor.stft.conv_real.weight"  # (F, 1, window)


class Stft(nn.Module):
    """The Fourier transform as two convolutions, whose filters are part of the weights."""

    def __init__(self, window: int, hop: int) -> None:
        super().__init__()
        self.margin = window // 2
        self.conv_real = nn.Conv1d(1, window // 2 + 1, window, stride=hop, bias=False)
        self.conv_imag = nn.Conv1d(1, window // 2 + 1, window, stride=hop, bias=False)

    def forward(self, waves: Tensor) -> Tensor:
        """(B, n) -> power (B, T, F)."""
        x = F.pad(waves[:, None], (self.margin, self.margin), mode="reflect")
        return (self.conv_real(x).square() + self.conv_imag(x).square()).transpose(1, 2)


class Spectrogram(nn.Module):
    def __init__(self, window: int, hop: int) -> None:
        super().__init__()
        self.stft = Stft(window, hop)

    def forward(self, waves: Tensor) -> Tensor:
        power: Tensor = self.stft(waves)
        return power


class LogMel(nn.Module):
    def __init__(self, window: int) -> None:
        super().__init__()
        self.melW = nn.Parameter(torch.zeros(window // 2 + 1, MELS))

    def forward(self, power: Tensor) -> Tensor:
        """(B, T, F) -> dB (B, T, M)."""
        return 10 * torch.log10((power @ self.melW).clamp_min(FLOOR))


class ConvBlock(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T, M) -> (B, width, T, M)."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Cnn14(nn.Module):
    """Mono sound at the front end's rate -> embedding and logits of 527 classes."""

    def __init__(self, front_end: PannsFrontEnd, width: int = 64) -> None:
        """`width` of the first block; the released weights have 64."""
        super().__init__()
        self.front_end = front_end
        self.spectrogram_extractor = Spectrogram(front_end.window, front_end.hop)
        self.logmel_extractor = LogMel(front_end.window)
        self.bn0 = nn.BatchNorm2d(MELS)
        widths = [1, *(width << i for i in range(6))]
        self.conv_block1, self.conv_block2, self.conv_block3, self.conv_block4, self.conv_block5, self.conv_block6 = (
            ConvBlock(a, b) for a, b in pairwise(widths)
        )
        self.fc1 = nn.Linear(widths[-1], widths[-1])
        self.fc_audioset = nn.Linear(widths[-1], CLASSES)

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """waves (B, n) -> embeddings (B, E), logits (B, 527)."""
        x = self.logmel_extractor(self.spectrogram_extractor(waves))[:, None]  # (B, 1, T, M)
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        blocks = (self.conv_block1, self.conv_block2, self.conv_block3, self.conv_block4, self.conv_block5)
        for block in blocks:
            x = F.avg_pool2d(block(x), 2)
        x = self.conv_block6(x).mean(dim=3)  # (B, E, T)
        x = F.relu(self.fc1(x.amax(dim=2) + x.mean(dim=2)))
        return x, self.fc_audioset(x)
