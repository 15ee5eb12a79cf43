"""Sizes of the network that the authors released (June 2026)."""

from dataclasses import dataclass

from ..strict import Positive


@dataclass(frozen=True)
class ReleasedConfig:
    """The defaults are the released sizes. Lengths are fixed by learned matrices; only widths and depths may differ."""

    width: Positive = 1536
    depth: Positive = 24
    heads: Positive = 64  # the release configures "24 heads" and then takes 1536/24 as their number
    hidden: Positive = 4096  # of a feed-forward
    condition_width: Positive = 768
    fusion_heads: Positive = 24
    fusion_depth: Positive = 8
    queries: Positive = 64  # of a modality
    temporal_depth: Positive = 4
    temporal_heads: Positive = 16
    temporal_head_width: Positive = 64
    frames: Positive = 50  # of 5 fps
    frame_tokens: Positive = 50  # CLIP's class token and 49 patches
    sync_steps: Positive = 240
    tokens: Positive = 128  # of a modality, after its conditioner
    prompt_latents: Positive = 215  # 10 s
    latents: Positive = 236  # 11 s
    channels: Positive = 64

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
