"""Synchformer whole (Iashin et al., 2024): from the pictures and the sound of a film to the offset between them.

The visual branch is the frozen encoder's (models/encoders/synchformer.py). The sound has an audio spectrogram
transformer (Gong et al., 2021) on segments of 0.64 s, whose patches are gathered over frequencies. A small transformer
reads the features of 14 segments of both and says which of 21 offsets they have.

B clips, N segments, S segments of a clip, n samples, M mel bands, F and T patches in frequency and time, W width.
"""

import re

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..encoders.libraries import transformers
from ..encoders.released import GATHER, from_released
from ..encoders.released import PREFIX as VISUAL
from ..encoders.synchformer import SEGMENT, STEPS, STRIDE, Gather, Synchformer, SynchformerConfig

RATE, FRAMES = 16000, 25.0  # Hz of sound, pictures per second
SAMPLES, SAMPLE_STRIDE = 10240, 5120  # of a segment, and from one to the next; as long as those of pictures
WINDOW = 14  # segments that are compared
OFFSETS = torch.linspace(-2, 2, 21)  # seconds by which sound and pictures differ, of the classes
SHORTEST = (SAMPLES + (WINDOW - 1) * SAMPLE_STRIDE) / RATE  # seconds
MELS, MEL_FRAMES, FFT, TAPER, HOP = 128, 66, 1024, 400, 160
MEAN, SPREAD = -4.2677393, 2 * 4.5689974  # of log mel powers, by the release
PATCH, PATCH_STRIDE = 16, 10
PATCHES = ((MELS - PATCH) // PATCH_STRIDE + 1, (MEL_FRAMES - PATCH) // PATCH_STRIDE + 1)  # F, T
HEAD, OFFSET_HEADS = 64, 8
RENAMES = (  # of the released names but the visual branch's, to ours
    (r"^afeat_extractor\.ast\.embeddings\.patch_embeddings\.projection\.", "audio.embed."),
    (r"^afeat_extractor\.ast\.embeddings\.", "audio."),
    (r"^afeat_extractor\.ast\.encoder\.layer\.(\d+)\.attention\.attention\.", r"audio.blocks.\1."),
    (r"^afeat_extractor\.ast\.encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"audio.blocks.\1.out."),
    (r"^afeat_extractor\.ast\.encoder\.layer\.(\d+)\.intermediate\.dense\.", r"audio.blocks.\1.mlp.0."),
    (r"^afeat_extractor\.ast\.encoder\.layer\.(\d+)\.output\.dense\.", r"audio.blocks.\1.mlp.2."),
    (r"^afeat_extractor\.ast\.encoder\.layer\.(\d+)\.", r"audio.blocks.\1."),
    (r"^afeat_extractor\.ast\.layernorm\.", "audio.norm."),
    (r"^afeat_extractor\.freq_attn_agg\.cls_token$", "audio.gather.token"),
    (r"^afeat_extractor\.freq_attn_agg\.self_attn\.in_proj_(weight|bias)$", r"audio.gather.qkv.\1"),
    *((rf"^afeat_extractor\.freq_attn_agg\.{re.escape(a)}\.", f"audio.gather.{b}.") for a, b in GATHER.items()),
    (r"^transformer\.pos_emb_cfg\.pos_emb$", "transformer.position"),
)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Released weights under the names of `AvSync`, in float32.

    Raises ValueError where a name of the visual branch is missing or not known; of the others, loading does.
    """
    result = {f"visual.{name}": tensor for name, tensor in from_released(state, _visual_config(state)).items()}
    for name, tensor in state.items():
        if not name.startswith(VISUAL):
            key = name
            for pattern, replacement in RENAMES:
                key = re.sub(pattern, replacement, key)
            result[key] = tensor.float()
    return result


def _visual_config(state: dict[str, Tensor]) -> SynchformerConfig:
    """By the shapes of released weights. Raises KeyError where one of them is missing."""
    patch = state[f"{VISUAL}patch_embed_3d.proj.weight"]
    width, positions = patch.shape[0], state[f"{VISUAL}pos_embed"].shape[1] - 1
    depth = sum(f"{VISUAL}blocks.{i}.norm1.weight" in state for i in range(len(state)))
    return SynchformerConfig(
        width, depth, max(1, width // HEAD), round(positions**0.5) * patch.shape[-1], patch.shape[-1]
    )


def log_mel(segments: Tensor) -> Tensor:
    """(N, SAMPLES) -> (N, M, MEL_FRAMES), as the network takes them."""
    taper = torch.hann_window(TAPER, device=segments.device)
    spectrum = torch.stft(segments, FFT, HOP, TAPER, taper, center=True, return_complex=True).abs().square()
    mel_filter_bank = transformers().audio_utils.mel_filter_bank
    bank = mel_filter_bank(FFT // 2 + 1, MELS, 0.0, RATE / 2, RATE, norm=None, mel_scale="htk")
    filters = torch.from_numpy(bank.astype(np.float32)).to(segments.device)
    mel = torch.log(filters.T @ spectrum + 1e-6)[..., :MEL_FRAMES]
    return (F.pad(mel, (0, MEL_FRAMES - mel.shape[-1])) - MEAN) / SPREAD


class AudioBlock(nn.Module):
    """Pre-norm: attention, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD)
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(width, 1e-12), nn.LayerNorm(width, 1e-12)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, W) -> (N, tokens, W)."""
        normed = self.layernorm_before(x)
        x = x + self.out(_attention(self.query(normed), self.key(normed), self.value(normed), self.heads))
        return x + self.mlp(self.layernorm_after(x))


class AudioBranch(nn.Module):
    """Segments of a mel spectrogram to features."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.cls_token, self.distillation_token = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 2 + PATCHES[0] * PATCHES[1], width))
        self.embed = nn.Conv2d(1, width, PATCH, stride=PATCH_STRIDE)
        self.blocks = nn.ModuleList(AudioBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, 1e-12)
        self.gather = Gather(width, max(1, width // HEAD))

    def forward(self, mel: Tensor) -> Tensor:
        """(N, M, MEL_FRAMES) -> (N, T, W)."""
        patches = self.embed(mel[:, None]).flatten(2).transpose(1, 2)  # (N, F·T, W)
        tokens = torch.cat((self.cls_token, self.distillation_token), dim=1).expand(len(mel), -1, -1)
        x = torch.cat((tokens, patches), dim=1) + self.position_embeddings
        for block in self.blocks:
            x = block(x)
        steps = rearrange(self.norm(x)[:, 2:], "n (f t) w -> (n t) f w", f=PATCHES[0])
        return rearrange(self.gather(steps), "(n t) w -> n t w", n=len(mel))


class OffsetAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.key, self.query, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(_attention(self.query(x), self.key(x), self.value(x), OFFSET_HEADS))
        return out


class OffsetBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1, self.ln2, self.attn = nn.LayerNorm(width), nn.LayerNorm(width), OffsetAttention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class OffsetTransformer(nn.Module):
    """Features of WINDOW segments of pictures and sound to logits of the offsets."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.vis_in_lnorm, self.aud_in_lnorm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.OFF_tok, self.MOD_tok = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))
        self.position = nn.Parameter(torch.zeros(1, 2 + WINDOW * (STEPS + PATCHES[1]), width))
        self.blocks = nn.Sequential(*(OffsetBlock(width) for _ in range(depth)))
        self.ln_f = nn.LayerNorm(width)
        self.off_head = nn.Linear(width, len(OFFSETS))

    def forward(self, pictures: Tensor, sound: Tensor) -> Tensor:
        """(B, WINDOW·STEPS, W) and (B, WINDOW·T, W) -> (B, offsets)."""
        ask, divide = (token.expand(len(sound), -1, -1) for token in (self.OFF_tok, self.MOD_tok))
        x = torch.cat((ask, self.vis_in_lnorm(pictures), divide, self.aud_in_lnorm(sound)), dim=1)
        logits: Tensor = self.off_head(self.ln_f(self.blocks(x + self.position))[:, 0])
        return logits


class AvSync(nn.Module):
    """The parts of the network; the visual one takes (N, 3, 16, size, size) in [-1, 1]."""

    def __init__(self, visual: SynchformerConfig, audio_depth: int, offset_depth: int) -> None:
        super().__init__()
        width = visual.width
        self.visual, self.audio = Synchformer(visual), AudioBranch(width, audio_depth)
        self.vproj, self.aproj = nn.Linear(width, width), nn.Linear(width, width)
        self.transformer = OffsetTransformer(width, offset_depth)

    @classmethod
    def of_weights(cls, state: dict[str, Tensor]) -> "AvSync":
        """The network with the sizes of renamed weights. Raises KeyError where one that tells a size is missing."""
        kernel, positions = state["visual.embed.weight"], state["visual.space_position"].shape[1] - 1
        audio, offset, pictures = (
            sum(key.format(i) in state for i in range(len(state)))
            for key in (
                "audio.blocks.{}.query.weight",
                "transformer.blocks.{}.ln1.weight",
                "visual.blocks.{}.mlp.0.weight",
            )
        )
        width, patch = kernel.shape[0], kernel.shape[-1]
        size = round(positions**0.5) * patch
        return cls(SynchformerConfig(width, pictures, max(1, width // HEAD), size, patch), audio, offset)

    def sound_features(self, wave: Tensor) -> Tensor:
        """(n,) at RATE, of SAMPLES or more -> (S, T, W)."""
        features: Tensor = self.audio(log_mel(wave.unfold(0, SAMPLES, SAMPLE_STRIDE)))
        return features

    def picture_features(self, frames: Tensor) -> Tensor:
        """(pictures, 3, size, size) uint8 at FRAMES, SEGMENT or more -> (S, STEPS, W)."""
        starts = range(0, len(frames) - SEGMENT + 1, STRIDE)
        # One at a time: a segment is 1,568 tokens, and its floats are made only here.
        parts = [
            self.visual(rearrange(frames[i : i + SEGMENT], "t c y x -> 1 c t y x").float() / 127.5 - 1) for i in starts
        ]
        return torch.cat(parts)

    def offset_logits(self, pictures: Tensor, sound: Tensor) -> Tensor:
        """(B, WINDOW, STEPS, W) and (B, WINDOW, T, W) -> (B, offsets)."""
        logits: Tensor = self.transformer(self.vproj(pictures.flatten(1, 2)), self.aproj(sound.flatten(1, 2)))
        return logits


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """(N, tokens, W) each -> (N, tokens, W)."""
    q, k, v = (rearrange(x, "n t (h d) -> n h t d", h=heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "n h t d -> n t (h d)")
