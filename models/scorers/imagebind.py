"""ImageBind's branches for sound and pictures (Girdhar et al., 2023), under the names of the released weights.

B windows, n samples, M mel bands, L tokens, D width, E embedding.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mel import mel_filters_htk
from .mlp import Mlp

RATE, SECONDS, WINDOWS = 16000, 2, 3  # Hz; of a window of sound, and how many are heard
FRAMES, SIZE, CROPS = 0.5, 224, 3  # pictures per second, of which two neighbours are seen at a time
MELS, MEL_FRAMES = 128, 204
TAPER, HOP, FFT, LOWEST = 400, 160, 512, 20.0  # samples, and Hz
PREEMPHASIS, FLOOR = 0.97, torch.finfo(torch.float32).eps
MEAN, SPREAD = -4.268, 9.138  # of log mel powers, by the release
PICTURE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
PICTURE_SPREAD = (0.26862954, 0.26130258, 0.27577711)
EPSILON = 1e-6  # of normalisations in the blocks
HEADS = {"vision": 80, "audio": 64}  # width of an attention head
UNUSED = re.compile(r"modality_(preprocessors|trunks|heads|postprocessors)\.(text|depth|thermal|imu)\.")


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Released weights without the branches for text, depth, heat and motion."""
    return {name: tensor for name, tensor in state.items() if not UNUSED.match(name)}


def log_mel(windows: Tensor) -> Tensor:
    """(B, n) at RATE -> (B, 1, M, MEL_FRAMES), as the network takes them: Kaldi's filter bank."""
    frames = (windows - windows.mean(dim=1, keepdim=True)).unfold(1, TAPER, HOP)  # (B, frames, TAPER)
    frames = frames - frames.mean(dim=2, keepdim=True)
    before = torch.cat((frames[..., :1], frames[..., :-1]), dim=2)
    taper = torch.hann_window(TAPER, periodic=False, device=windows.device)
    power = torch.fft.rfft((frames - PREEMPHASIS * before) * taper, FFT).abs().square()
    filters = mel_filters_htk(RATE, FFT, MELS, LOWEST, RATE / 2).to(windows.device)
    mel = torch.log((power @ filters).clamp_min(FLOOR)).transpose(1, 2)[..., :MEL_FRAMES]
    return (F.pad(mel, (0, MEL_FRAMES - mel.shape[-1]))[:, None] - MEAN) / SPREAD


def sound_windows(wave: Tensor) -> Tensor:
    """(n,) at RATE -> (WINDOWS, n): at equal distances from the first to the last; silence follows a short sound."""
    size = SECONDS * RATE
    wave = F.pad(wave, (0, max(0, size - wave.shape[0])))
    last = (wave.shape[0] - size) / RATE / (WINDOWS - 1)  # seconds from one window to the next
    starts = [int(i * last * RATE) for i in range(WINDOWS)]
    return torch.stack([wave[start : start + size] for start in starts])


def picture_pairs(pictures: Tensor) -> Tensor:
    """(pictures, CROPS, 3, SIZE, SIZE) uint8 -> (B, 3, 2, SIZE, SIZE): neighbours, crop by crop; one picture twice."""
    mean, spread = (torch.tensor(x, device=pictures.device)[:, None, None] for x in (PICTURE_MEAN, PICTURE_SPREAD))
    scaled = (pictures.float() / 255 - mean) / spread
    following = scaled[1:] if len(scaled) > 1 else scaled
    pairs = torch.stack((scaled[: len(following)], following), dim=3)  # (pairs, CROPS, 3, 2, SIZE, SIZE)
    return pairs.flatten(0, 1)


class PositionEmbedding(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))


class Stem(nn.Module):
    """Patches of pictures or of a spectrogram to tokens."""

    def __init__(self, modality: str, width: int) -> None:
        super().__init__()
        if modality == "vision":
            kernel = (2, 14, 14)
            self.proj: nn.Module = nn.Sequential(nn.Identity(), nn.Conv3d(3, width, kernel, stride=kernel, bias=False))
        else:
            self.proj = nn.Conv2d(1, width, 16, stride=10, bias=False)
            self.norm_layer = nn.LayerNorm(width)
        self.normed = modality != "vision"

    def forward(self, x: Tensor) -> Tensor:
        """-> (B, L, D)."""
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return self.norm_layer(tokens) if self.normed else tokens


class Preprocessor(nn.Module):
    def __init__(self, modality: str, width: int, tokens: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.rgbt_stem = Stem(modality, width)
        self.pos_embedding_helper = PositionEmbedding(tokens, width)

    def forward(self, x: Tensor) -> Tensor:
        """-> (B, L, D), the class token first."""
        tokens = self.rgbt_stem(x)
        tokens = torch.cat((self.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
        return tokens + self.pos_embedding_helper.pos_embed


class Block(nn.Module):
    """Pre-norm attention, of sound with one more learned key and value, and an MLP."""

    def __init__(self, modality: str, width: int) -> None:
        super().__init__()
        heads = max(1, width // HEADS[modality])
        self.attn = nn.MultiheadAttention(width, heads, add_bias_kv=modality == "audio", batch_first=True)
        self.norm_1, self.norm_2, self.mlp = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        normed = self.norm_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.norm_2(x))


class Trunk(nn.Module):
    def __init__(self, modality: str, width: int, depth: int) -> None:
        super().__init__()
        first = nn.LayerNorm(width, EPSILON) if modality == "vision" else nn.Identity()
        self.pre_transformer_layer = nn.Sequential(first)
        self.blocks = nn.Sequential(*(Block(modality, width) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.blocks(self.pre_transformer_layer(x))
        return states


class LogitScale(nn.Module):
    """A factor of the release that no cosine sees."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_logit_scale", torch.zeros(()))


class ImageBind(nn.Module):
    """Two branches that embed sound and pictures in one space."""

    def __init__(self, widths: dict[str, int], depths: dict[str, int], tokens: dict[str, int], embedding: int) -> None:
        super().__init__()
        self.modality_preprocessors = nn.ModuleDict({m: Preprocessor(m, widths[m], tokens[m]) for m in HEADS})
        self.modality_trunks = nn.ModuleDict({m: Trunk(m, widths[m], depths[m]) for m in HEADS})
        self.modality_heads = nn.ModuleDict(
            {
                m: nn.Sequential(
                    nn.LayerNorm(widths[m], EPSILON), nn.Identity(), nn.Linear(widths[m], embedding, bias=False)
                )
                for m in HEADS
            }
        )
        self.modality_postprocessors = nn.ModuleDict({"audio": nn.Sequential(nn.Identity(), LogitScale())})

    @classmethod
    def of_weights(cls, state: dict[str, Tensor]) -> "ImageBind":
        """The network with the sizes of weights. Raises KeyError where one that tells a size is missing."""
        positions = {m: state[f"modality_preprocessors.{m}.pos_embedding_helper.pos_embed"].shape for m in HEADS}
        depths = {
            m: sum(f"modality_trunks.{m}.blocks.{i}.norm_1.weight" in state for i in range(len(state))) for m in HEADS
        }
        widths, tokens = ({m: shape[axis] for m, shape in positions.items()} for axis in (2, 1))
        return cls(widths, depths, tokens, state["modality_heads.audio.2.weight"].shape[0])

    def sound_embeddings(self, wave: Tensor) -> Tensor:
        """(n,) at RATE -> (E,), the mean over windows of embeddings of length 1."""
        return self._embeddings("audio", log_mel(sound_windows(wave))).mean(dim=0)

    def picture_embeddings(self, pictures: Tensor) -> Tensor:
        """(pictures, CROPS, 3, SIZE, SIZE) uint8 at FRAMES -> (E,), the mean of embeddings of length 1."""
        pairs = picture_pairs(pictures)
        return torch.cat([self._embeddings("vision", part) for part in pairs.split(CROPS)]).mean(dim=0)

    def _embeddings(self, modality: str, x: Tensor) -> Tensor:
        """-> (B, E), of length 1."""
        states = self.modality_trunks[modality](self.modality_preprocessors[modality](x))
        return F.normalize(self.modality_heads[modality](states[:, :1])[:, 0], dim=-1)
