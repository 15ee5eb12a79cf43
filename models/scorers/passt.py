"""PaSST (Koutini et al., 2022): a transformer over patches of a mel spectrogram; names as in the release.

B clips, n samples, F and T patches in frequency and time, L tokens, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mel import mel_filters_htk
from .mlp import Mlp

RATE = 32000  # Hz
SECONDS = 10.0  # of a clip: the positions end there
WINDOW, HOP, FFT = 800, 320, 1024  # samples
MELS, HIGHEST = 128, 15000.0  # Hz
PREEMPHASIS = 0.97
PATCH, CLASSES = 16, 527
HEAD = 64  # width of an attention head
POSITION_KEY, DEPTH_KEY = "freq_new_pos_embed", "blocks.{}.norm1.weight"
STRIDES = {12: 10, 8: 16}  # by the number of patches in frequency
EPSILON = 1e-6  # of normalisations in the blocks


def log_mel(waves: Tensor) -> Tensor:
    """(B, n) -> (B, 1, MELS, frames), about from -1 to 1."""
    emphasized = waves[:, 1:] - PREEMPHASIS * waves[:, :-1]
    taper = torch.hann_window(WINDOW, periodic=False, device=waves.device)
    spectrum = torch.stft(emphasized, FFT, HOP, WINDOW, taper, center=True, return_complex=True)
    filters = mel_filters_htk(RATE, FFT, MELS, 0.0, HIGHEST).to(waves.device)
    return ((torch.log(filters.T @ spectrum.abs().square() + 1e-5) + 4.5) / 5)[:, None]


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, HEAD)).permute(2, 0, 3, 1, 4)  # (B, heads, L, HEAD) each
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        self.attn, self.mlp = Attention(width), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, PATCH, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, MELS, frames) -> (B, D, F, T)."""
        patches: Tensor = self.proj(x)
        return patches


class Passt(nn.Module):
    """Ten seconds of mono sound at RATE, or less -> embedding and logits of 527 classes."""

    def __init__(self, width: int = 768, depth: int = 12, patches: tuple[int, int] = (12, 99)) -> None:
        """`patches`: positions in frequency and in time."""
        super().__init__()
        self.cls_token, self.dist_token = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))
        self.new_pos_embed = nn.Parameter(torch.zeros(1, 2, width))
        self.freq_new_pos_embed = nn.Parameter(torch.zeros(1, width, patches[0], 1))
        self.time_new_pos_embed = nn.Parameter(torch.zeros(1, width, 1, patches[1]))
        self.patch_embed = PatchEmbedding(width, STRIDES[patches[0]])
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, EPSILON)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, CLASSES))
        self.head_dist = nn.Linear(width, CLASSES)  # of the distillation in training; released, and not used here

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """waves (B, n) -> embeddings (B, D), logits (B, 527)."""
        x = self.patch_embed(log_mel(waves))
        x = x + self.time_new_pos_embed[..., : x.shape[3]] + self.freq_new_pos_embed
        tokens = torch.cat((self.cls_token, self.dist_token), dim=1) + self.new_pos_embed
        x = torch.cat((tokens.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)), dim=1)  # (B, L, D)
        embedding = self.norm(self.blocks(x))[:, :2].mean(dim=1)
        return embedding, self.head(embedding)
