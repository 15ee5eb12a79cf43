"""Diff-Foley's alignment classifier (Luo et al., 2023), behind the field's AlignAcc: is this sound the true one of this
video? Names as in the release.

A mel spectrogram becomes latents by an image autoencoder, and a U-Net's downward half looks at them and, by
cross-attention, at the video's embeddings (`cavp.py`).

B pairs, n samples, M pictures, E embedding, D channels, y and x height and width of latents.
"""

import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders.libraries import transformers

RATE, FRAMES = 16000, 32  # Hz; pictures that are compared, at four per second
MELS, MEL_FRAMES, FFT, HOP = 128, 512, 1024, 256
LOWEST, HIGHEST = 125.0, 7600.0  # Hz
SECONDS = MEL_FRAMES * HOP / RATE  # of sound
SAMPLES = (MEL_FRAMES - 1) * HOP + FFT // 2  # to the end of the last frame
LATENT_SCALE = 0.18215
HEADS, GROUPS = 8, 32
LEVELS, ENCODER_LEVELS = (1, 2, 2), (1, 2, 4, 4)  # widths, of the U-Net and of the autoencoder
NETWORK = "model."  # of the U-Net's weights
UNUSED = re.compile(
    r"(first_stage_model\.(decoder|post_quant_conv|loss)\.|betas$|alphas_|sqrt_|log_one_minus_|posterior_|lvlb_weights$"
    r"|scale_factor$)"
)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Released weights without the autoencoder's decoder and the constants of a diffusion that never runs."""
    return {name: tensor for name, tensor in state.items() if not UNUSED.match(name)}


def log_mel(waves: Tensor) -> Tensor:
    """(B, n) at RATE, of SAMPLES or more -> (B, MELS, MEL_FRAMES) in [0, 1]: magnitudes from -80 to 20 dB."""
    taper = torch.hann_window(FFT, device=waves.device)
    spectrum = torch.stft(waves[:, :SAMPLES], FFT, HOP, FFT, taper, pad_mode="constant", return_complex=True)
    mel_filter_bank = transformers().audio_utils.mel_filter_bank
    bank = mel_filter_bank(FFT // 2 + 1, MELS, LOWEST, HIGHEST, RATE, norm="slaney", mel_scale="slaney")
    mel = torch.from_numpy(bank.astype(np.float32)).to(waves.device).T @ spectrum.abs()[..., :MEL_FRAMES]
    return ((20 * torch.log10(mel.clamp_min(1e-5)) + 80) / 100).clamp(0, 1)


def _norm(width: int, epsilon: float = 1e-6) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, epsilon)


class ResnetBlock(nn.Module):
    """Of the autoencoder."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), nn.Conv2d(channels, width, 3, padding=1)
        self.norm2, self.conv2 = _norm(width), nn.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        out: Tensor = self.nin_shortcut(x) + h
        return out


class AttentionBlock(nn.Module):
    """Of the autoencoder: every place attends to every other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])
        out: Tensor = x + self.proj_out(attended)
        return out


class DownConv(nn.Module):
    """Half the height and width, with a margin at the ends only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Level(nn.Module):
    def __init__(self, channels: int, width: int, last: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList((ResnetBlock(channels, width), ResnetBlock(width, width)))
        self.downsample = nn.Identity() if last else DownConv(width)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        out: Tensor = self.downsample(x)
        return out


class Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            ResnetBlock(width, width),
            AttentionBlock(width),
            ResnetBlock(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class PictureEncoder(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        """`channels` of the result: means and logarithms of variances."""
        super().__init__()
        widths = [width, *(width * level for level in ENCODER_LEVELS)]
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        last = len(ENCODER_LEVELS) - 1
        self.down = nn.ModuleList(Level(widths[i], widths[i + 1], i == last) for i in range(last + 1))
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = _norm(widths[-1]), nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return out


class FirstStage(nn.Module):
    """(B, 3, MELS, MEL_FRAMES) -> latents (B, D, y, x): the means, where the release draws a sample."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.encoder, self.quant_conv = PictureEncoder(width, 2 * channels), nn.Conv2d(2 * channels, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return LATENT_SCALE * self.quant_conv(self.encoder(x)).chunk(2, dim=1)[0]


class TimedBlock(nn.Module):
    """Of the U-Net: a residual block that also takes the embedding of a noise level."""

    def __init__(self, channels: int, width: int, embedding: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(_norm(channels, 1e-5), nn.SiLU(), nn.Conv2d(channels, width, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, width))
        self.out_layers = nn.Sequential(
            _norm(width, 1e-5), nn.SiLU(), nn.Identity(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.skip_connection = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(level)[..., None, None]
        out: Tensor = self.skip_connection(x) + self.out_layers(h)
        return out


class CrossAttention(nn.Module):
    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(context, width, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        pairs = zip((self.to_q, self.to_k, self.to_v), (x, context, context), strict=True)
        q, k, v = (layer(y).unflatten(2, (HEADS, -1)).transpose(1, 2) for layer, y in pairs)
        out: Tensor = self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class GatedProjection(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedProjection(width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class TransformerBlock(nn.Module):
    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(width, width), CrossAttention(width, context)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, context)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, D, y, x)"""
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        out: Tensor = x + self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))
        return out


class Halving(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class ClassifierNetwork(nn.Module):
    """The downward half of a U-Net, and a probability."""

    def __init__(self, width: int, channels: int, context: int) -> None:
        super().__init__()
        embedding = 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        blocks, before = [nn.ModuleList([nn.Conv2d(channels, width, 3, padding=1)])], width
        for i, level in enumerate(LEVELS):
            own = [TimedBlock(before, level * width, embedding)]
            blocks.append(nn.ModuleList([*own, SpatialTransformer(level * width, context)] if i else own))
            before = level * width
            if i < len(LEVELS) - 1:
                blocks.append(nn.ModuleList([Halving(before)]))
        self.input_blocks = nn.ModuleList(blocks)
        middle = TimedBlock(before, before, embedding), SpatialTransformer(before, context)
        self.middle_block = nn.ModuleList([*middle, TimedBlock(before, before, embedding)])
        self.out = nn.Sequential(_norm(before, 1e-5), nn.SiLU(), nn.Conv2d(before, before // 2, 3, padding=1))
        self.classifier = nn.Linear(before // 2, 1)
        self.width = width

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Latents (B, D, y, x) and (B, M, E) -> probabilities (B,)."""
        zero = torch.zeros(
            self.width // 2, device=x.device
        )  # the noise level, of which the sines and cosines are taken
        level = self.time_embed(torch.cat((zero.cos(), zero.sin())).expand(len(x), -1))
        for layer in (layer for block in (*self.input_blocks, self.middle_block) for layer in block):
            if isinstance(layer, TimedBlock):
                x = layer(x, level)
            else:
                x = layer(x, context) if isinstance(layer, SpatialTransformer) else layer(x)
        return self.classifier(self.out(x).mean(dim=(2, 3)))[:, 0].sigmoid()


class VideoContext(nn.Module):
    """Embeddings of pictures, with their places."""

    def __init__(self, embedding: int, width: int, places: int) -> None:
        super().__init__()
        self.embedder, self.pos_emb = nn.Sequential(nn.Linear(embedding, width)), nn.Embedding(places, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, E) -> (B, M, width)."""
        return self.embedder(x) + self.pos_emb.weight[: x.shape[1]]


class AlignmentClassifier(nn.Module):
    def __init__(self, encoder: int, channels: int, width: int, embedding: int, context: int, places: int) -> None:
        super().__init__()
        self.first_stage_model = FirstStage(encoder, channels)
        self.cond_model = VideoContext(embedding, context, places)
        self.model = ClassifierNetwork(width, channels, context)

    @classmethod
    def of_weights(cls, state: dict[str, Tensor]) -> "AlignmentClassifier":
        """The network with the sizes of weights. Raises KeyError where one that tells a size is missing."""
        latents = state[f"{NETWORK}input_blocks.0.0.weight"].shape
        context, embedding = state["cond_model.embedder.0.weight"].shape
        encoder = state["first_stage_model.encoder.conv_in.weight"].shape[0]
        return cls(encoder, latents[1], latents[0], embedding, context, state["cond_model.pos_emb.weight"].shape[0])

    def latents(self, waves: Tensor) -> Tensor:
        """(B, n) at RATE -> (B, D, y, x)."""
        found: Tensor = self.first_stage_model(log_mel(waves)[:, None].expand(-1, 3, -1, -1))
        return found

    def probabilities(self, latents: Tensor, pictures: Tensor) -> Tensor:
        """Latents and embeddings of pictures (B, M, E) -> (B,) that each pair is a true one."""
        found: Tensor = self.model(latents, self.cond_model(pictures))
        return found
