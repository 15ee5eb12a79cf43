"""A mel filter bank as HTK and Kaldi have it: triangles on the mel scale, not normalised."""

import torch
from torch import Tensor


def mel(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hertz / 700.0)


def mel_filters_htk(rate: int, fft: int, bands: int, lowest: float, highest: float) -> Tensor:
    """(fft / 2 + 1, bands): triangles between points at equal distances on the mel scale from `lowest` to `highest`
    Hz."""
    low, high = mel(torch.tensor([lowest, highest], dtype=torch.float64)).tolist()
    points = torch.linspace(low, high, bands + 2, dtype=torch.float64)
    bins = mel(torch.linspace(0, rate / 2, fft // 2 + 1, dtype=torch.float64))[:, None]
    rising = (bins - points[:-2]) / (points[1:-1] - points[:-2])
    falling = (points[2:] - bins) / (points[2:] - points[1:-1])
    return torch.minimum(rising, falling).clamp_min(0).float()
