"""Sizes of the network that the authors released (June 2026)."""

from dataclasses import dataclass

from ..strict import Depth, Length, Size


@dataclass(frozen=True)
class ReleasedConfig:
    """The defaults are the released sizes. Lengths are fixed by learned matrices; only widths and depths may differ."""

    width: Size = 1536
    depth: Depth = 24
    heads: Size = 64  # the release configures "24 heads" and then takes 1536/24 as their number
    hidden: Size = 4096  # of a feed-forward
    condition_width: Size = 768
    fusion_heads: Size = 24
    fusion_depth: Depth = 8
    queries: Length = 64  # of a modality
    temporal_depth: Depth = 4
    temporal_heads: Size = 16
    temporal_head_width: Size = 64
    frames: Length = 50  # of 5 fps
    frame_tokens: Length = 50  # CLIP's class token and 49 patches
    sync_steps: Length = 240
    tokens: Length = 128  # of a modality, after its conditioner
    prompt_latents: Length = 215  # 10 s
    latents: Length = 236  # 11 s
    channels: Size = 64

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width: {self.width} over {self.heads} heads must give an even head width")
        if self.condition_width % self.fusion_heads:
            raise ValueError(f"condition_width: {self.condition_width} is not a multiple of {self.fusion_heads} heads")

    @property
    def positions(self) -> int:
        """The time token and the latents."""
        return 1 + self.latents

    @property
    def condition_tokens(self) -> int:
        return 3 * self.tokens

    @property
    def least_weights(self) -> int:
        """A lower bound of the number of weights: one matrix for each pair of sizes."""
        pairs = [
            (self.depth * self.width, self.width + self.hidden),
            (self.width, self.channels + self.condition_width),
            (self.condition_tokens, self.positions),
            (self.tokens, self.frames * self.frame_tokens + self.sync_steps + self.prompt_latents),
            (self.condition_width, self.channels + self.frames + self.queries),
            (self.condition_width, self.fusion_depth * self.condition_width),
            (self.condition_width, self.temporal_depth * self.temporal_heads * self.temporal_head_width),
        ]
        return sum(rows * columns for rows, columns in pairs)
