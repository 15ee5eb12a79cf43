"""The visual branch of Synchformer (Iashin et al., 2024), which no library has: a video transformer with divided
space-time attention (MotionFormer's and TimeSformer's) on segments of 16 frames, whose patches are then gathered to one
feature for every two frames.

S segments, T time steps of a segment (8), P patches of a frame (196), W width, H heads, D head width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import strict
from ..config import VideoConfig
from ..weights import load_strict
from .pretrained import PretrainedWeights
from .runtime import Runtime

SEGMENT = 16  # frames
STRIDE = 8  # frames from one segment to the next
TUBE = 2  # frames of a patch
STEPS = SEGMENT // TUBE  # features of a segment
SEGMENTS_AT_ONCE = 16  # segments that are encoded together: 25,000 tokens, 1.5 GB of activations in float32
WEIGHTS, CONFIG = "model.safetensors", "config.json"
REMEDY = (
    f"give a folder with {CONFIG} and {WEIGHTS}, made once from the released file by `python launch/convert.py "
    "synchformer_state_dict.pth --encoder synchformer --out weights/synchformer` (docs/encoders.md)"
)


@dataclass(frozen=True)
class SynchformerConfig:
    """The released weights' sizes."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    size: int = 224  # pixels, height and width
    patch: int = 16  # pixels

    @property
    def patches(self) -> int:
        return (self.size // self.patch) ** 2


class Synchformer(nn.Module):
    """Segments of frames to features; weights are random until they are loaded."""

    def __init__(self, config: SynchformerConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        kernel = (TUBE, config.patch, config.patch)
        self.embed = nn.Conv3d(3, width, kernel, stride=kernel)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.space_position = nn.Parameter(torch.randn(1, 1 + config.patches, width) * 0.02)
        self.time_position = nn.Parameter(torch.randn(1, STEPS, width) * 0.02)
        self.blocks = nn.ModuleList(SynchformerBlock(width, config.heads) for _ in range(config.depth))
        self.norm = _norm(width)
        self.gather = Gather(width, config.heads)

    def forward(self, segments: Tensor) -> Tensor:
        """segments (S, 3, 16, size, size) in [-1, 1] -> (S, T, W)."""
        patches = rearrange(self.embed(segments), "s w t y x -> s (t y x) w")
        token, space = self.space_position.split((1, self.config.patches), dim=1)
        where = rearrange(self.time_position.unsqueeze(2) + space.unsqueeze(1), "1 t p w -> 1 (t p) w")
        x = torch.cat(((self.token + token).expand(len(segments), -1, -1), patches + where), dim=1)
        for block in self.blocks:
            x = block(x)
        steps = rearrange(self.norm(x[:, 1:]), "s (t p) w -> (s t) p w", t=STEPS)
        return rearrange(self.gather(steps), "(s t) w -> s t w", t=STEPS)


class SynchformerBlock(nn.Module):
    """Pre-norm: attention over time, then over space, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.time_norm, self.time = _norm(width), DividedAttention(width, heads, "s h (t p) d -> (s p) h t d")
        self.space_norm, self.space = _norm(width), DividedAttention(width, heads, "s h (t p) d -> (s t) h p d")
        self.mlp_norm, self.mlp = _norm(width), _mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """x (S, 1 + T·P, W), the class token first."""
        x = x + self.time(self.time_norm(x))
        x = x + self.space(self.space_norm(x))
        x = x + self.mlp(self.mlp_norm(x))
        return x


class DividedAttention(nn.Module):
    """A patch attends to the class token and to its own group: the same place at all times, or all places at the same
    time. The class token attends to everything."""

    def __init__(self, width: int, heads: int, grouping: str) -> None:
        super().__init__()
        self.heads, self.grouping = heads, grouping
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (S, 1 + T·P, W), the class token first."""
        q, k, v = rearrange(self.qkv(x), "s n (three h d) -> three s h n d", three=3, h=self.heads).unbind(0)
        token = F.scaled_dot_product_attention(q[:, :, :1], k, v)
        grouped = F.scaled_dot_product_attention(
            rearrange(q[:, :, 1:], self.grouping, t=STEPS), self._keys(k), self._keys(v)
        )
        source, target = self.grouping.split(" -> ")
        patches = rearrange(grouped, f"{target} -> {source}", s=len(x), t=STEPS)
        return self.out(rearrange(torch.cat((token, patches), dim=2), "s h n d -> s n (h d)"))

    def _keys(self, k: Tensor) -> Tensor:
        """Keys or values of each group, the class token's before them."""
        groups = rearrange(k[:, :, 1:], self.grouping, t=STEPS)
        token = repeat(k[:, :, :1], "s h 1 d -> (s g) h 1 d", g=len(groups) // len(k))
        return torch.cat((token, groups), dim=2)


class Gather(nn.Module):
    """The patches of a time step to one feature: a pre-norm transformer layer with an extra token, whose state is the
    feature."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.norm, self.qkv, self.out = _norm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_norm, self.mlp = _norm(width), _mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, P, W) -> (N, W)."""
        x = torch.cat((self.token.expand(len(x), -1, -1), x), dim=1)
        qkv = rearrange(self.qkv(self.norm(x)), "n p (three h d) -> three n h p d", three=3, h=self.heads)
        q, k, v = qkv.unbind(0)
        # Only the token's state leaves this layer, so only it is computed.
        attended = F.scaled_dot_product_attention(q[:, :, :1], k, v)
        state = x[:, 0] + self.out(rearrange(attended, "n h 1 d -> n (h d)"))
        return state + self.mlp(self.mlp_norm(state))


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6)


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class SyncEncoder:
    """Motion frames to features."""

    def __init__(self, model: Synchformer, runtime: Runtime) -> None:
        self.runtime, self.model = runtime, runtime.frozen(model)
        if runtime.compile:
            for block in self.model.blocks:  # of one shape, so compiled once
                block.compile()

    @classmethod
    def load(cls, config: VideoConfig, runtime: Runtime) -> Self:
        """Raises ValueError where there are no weights, or others than the configuration says."""
        pretrained = PretrainedWeights("model.video.motion_weights", config.motion_weights, REMEDY)
        folder = Path(config.motion_weights)
        with pretrained.reading():
            if not pretrained.local:
                raise ValueError("Synchformer is on none")
            sizes: SynchformerConfig = strict.parse(SynchformerConfig, strict.parse_json((folder / CONFIG).read_text()))
        pretrained.check_sizes({"dim": config.dim, "size": config.size}, {"dim": sizes.width, "size": sizes.size})
        with torch.device("meta"):
            model = Synchformer(sizes)
        model.to_empty(device="cpu")
        with pretrained.reading():
            load_strict(model, load_file(folder / WEIGHTS))
        return cls(model, runtime)

    @torch.no_grad()
    def __call__(self, motion: Tensor) -> Tensor:
        """motion (B, M, 3, size, size) uint8 -> (B, steps, W) float32, where the frames lie: 8 features of every
        segment that fits into the M frames.

        Raises ValueError where there are fewer frames than a segment has.
        """
        count = segments_in(motion.shape[1])
        # Views: a frame stands in two segments, and is made a float only where it is encoded.
        views = [clip[STRIDE * i : STRIDE * i + SEGMENT] for clip in motion for i in range(count)]
        parts = []
        for i in range(0, len(views), SEGMENTS_AT_ONCE):
            segments = torch.stack(views[i : i + SEGMENTS_AT_ONCE]).to(self.runtime.device)
            with self.runtime.autocast():
                parts.append(self.model(rearrange(segments, "s t c y x -> s c t y x") / 127.5 - 1).float())
        return rearrange(torch.cat(parts), "(b s) t w -> b (s t) w", s=count).to(motion.device)


def segments_in(frames: int) -> int:
    """Whole segments of a clip. Raises ValueError where there is none."""
    if frames < SEGMENT:
        raise ValueError(f"video: {frames} motion frames are fewer than the {SEGMENT} of one Synchformer segment")
    return (frames - SEGMENT) // STRIDE + 1
