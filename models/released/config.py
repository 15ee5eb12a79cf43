"""Sizes of the network that the authors released (June 2026)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReleasedConfig:
    """The defaults are the released sizes. Lengths are fixed by learned matrices; only widths and depths may differ."""

    width: int = 1536
    depth: int = 24
    heads: int = 64  # the release configures "24 heads" and then takes 1536/24 as their number
    hidden: int = 4096  # of a feed-forward
    condition_width: int = 768
    fusion_heads: int = 24
    fusion_depth: int = 8
    queries: int = 64  # of a modality
    temporal_depth: int = 4
    temporal_heads: int = 16
    temporal_head_width: int = 64
    frames: int = 50  # of 5 fps
    frame_tokens: int = 50  # CLIP's class token and 49 patches
    sync_steps: int = 240
    tokens: int = 128  # of a modality, after its conditioner
    prompt_latents: int = 215  # 10 s
    latents: int = 236  # 11 s
    channels: int = 64

    @property
    def positions(self) -> int:
        """The time token and the latents."""
        return 1 + self.latents

    @property
    def condition_tokens(self) -> int:
        return 3 * self.tokens
