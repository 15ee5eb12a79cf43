"""Embeddings of diffusion time and of positions in seconds."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import CodecConfig


class TimeEmbedding(nn.Module):
    """Noise level t in [0, 1] (B,) -> (B, width): sinusoids of 1000·t through two linear layers."""

    def __init__(self, width: int, frequencies: int = 128) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.up = nn.Linear(2 * frequencies, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        exponents = torch.arange(self.frequencies, device=t.device, dtype=torch.float32) / self.frequencies
        angles = 1000 * t.float().unsqueeze(1) * torch.exp(-math.log(10_000) * exponents)
        features = torch.cat((angles.cos(), angles.sin()), dim=1)
        return self.out(F.silu(self.up(features.to(self.up.weight.dtype))))


def frame_seconds(codec: CodecConfig) -> Tensor:
    """The middle of each latent frame in seconds (L,)."""
    return (torch.arange(codec.frames, device="cpu") + 0.5) / codec.rate


def rope_table(seconds: Tensor, rate: float, head_width: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines (N, head_width/2) in float32 for tokens at `seconds` (N,).

    One unit of position is one latent frame (1/rate seconds), so that tokens of any rate that sound or show at the
    same moment are rotated alike. Tokens at NaN have no position and are not rotated (text).
    """
    half = head_width // 2
    inverse = base ** (-torch.arange(half, dtype=torch.float64, device="cpu") / half)
    angles = torch.nan_to_num(seconds.double(), nan=0.0)[:, None] * rate * inverse
    return angles.cos().float(), angles.sin().float()


class ConstantTensors(nn.Module):
    """Float32 constants that move with the model and are never cast.

    Not buffers: a model cast to bfloat16 casts its buffers, and a rotation by rounded angles is a different
    rotation. They are not moved at use either: a copy from the host would make every step wait for the device. They are
    made on the CPU, wherever weights are made, so that they are there when a model is built without memory.
    """

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__()
        self.tensors = tensors

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ConstantTensors":
        """`to`, `cuda` and `bfloat16` call this with the function that they apply to parameters."""
        device = fn(self.tensors[0].new_empty(0)).device
        self.tensors = tuple(tensor.to(device) for tensor in self.tensors)
        super()._apply(fn, recurse)
        return self


class SecondsEmbedding(nn.Module):
    """Embeds a token's position in the clip: sinusoids of its fixed time in seconds through a linear layer.

    Rotation tells tokens how far apart they are, never where they are, so that without this a model cannot place "from
    0.4 to 1.2 seconds": measured on the embedded scenes, 5% of such prompts were met.
    """

    def __init__(self, seconds: Tensor, width: int, frequencies: int = 32) -> None:
        super().__init__()
        steps = torch.arange(frequencies, dtype=torch.float64, device="cpu") / (frequencies - 1)
        periods = 20.0 * 0.005**steps  # 20 s to 0.1 s
        angles = 2 * math.pi * seconds.double()[:, None] / periods
        self.features = ConstantTensors(torch.cat((angles.sin(), angles.cos()), dim=1).float())
        self.linear = nn.Linear(2 * frequencies, width)

    def forward(self) -> Tensor:
        """-> (N, width)."""
        (features,) = self.features.tensors
        return self.linear(features.to(self.linear.weight.dtype))


class RopeTable(ConstantTensors):
    """Cosines and sines of fixed positions."""

    def __init__(self, seconds: Tensor, rate: float, head_width: int) -> None:
        super().__init__(*rope_table(seconds, rate, head_width))

    def forward(self) -> tuple[Tensor, Tensor]:
        """(cos, sin), each (N, head_width/2)."""
        cos, sin = self.tensors
        return cos, sin
