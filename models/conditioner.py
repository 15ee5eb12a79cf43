"""Features of the frozen encoders to condition tokens: temporal transformers, projections, fusion (section IV-A).

B batch, S motion steps, V video tokens, L latent frames, T text tokens, W width.
"""

import torch
from einops import reduce
from torch import Tensor, nn

from .blocks import TransformerBlock
from .config import ModelConfig, TransformerConfig, VideoConfig
from .embeddings import RopeTable, SecondsEmbedding, frame_seconds
from .fusion import Fusion


class TemporalTransformer(nn.Module):
    """Captures the dynamics of a feature sequence: (B, N, features) -> (B, N, width). Positions are in seconds."""

    def __init__(self, features: int, out: int, config: TransformerConfig, seconds: Tensor, rate: float) -> None:
        super().__init__()
        self.project_in = nn.Linear(features, config.width)
        self.blocks = nn.ModuleList(TransformerBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.project_out = nn.Linear(config.width, out)
        self.seconds = SecondsEmbedding(seconds, config.width)
        self.rope = RopeTable(seconds, rate, config.width // config.heads)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project_in(x) + self.seconds()
        for block in self.blocks:
            x = block(x, self.rope())
        return self.project_out(self.norm(x))


class Conditioner(nn.Module):
    """Video, audio and text features to the multimodal condition embedding H_c (B, V+L+T, W).

    The order is video, audio, text, so that padding (only texts have any) is at the end. `seconds` holds the times of
    the video and audio tokens; text has none. A model of sound alone has no part for video, and no tokens of it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.fusion.width
        codec, video = config.codec, config.video
        self.seconds = audio_seconds = frame_seconds(codec)
        self.video: TemporalTransformer | None = None
        if video and config.video_temporal:
            motion_seconds = video_seconds(video)
            self.pool = video.pool
            self.video = TemporalTransformer(video.dim, width, config.video_temporal, motion_seconds, codec.rate)
            pooled = reduce(motion_seconds, "(v p) -> v", "mean", p=video.pool)
            self.seconds = torch.cat((pooled, audio_seconds))  # (V+L,)
        self.audio = TemporalTransformer(codec.latent_channels, width, config.audio_temporal, audio_seconds, codec.rate)
        self.text = nn.Linear(config.text.dim, width)
        self.modality = nn.Parameter(torch.randn(len(config.modalities), width) * 0.02)
        self.fusion = Fusion(config.fusion, len(config.modalities))

    def forward(self, video: Tensor, audio: Tensor, text: Tensor, text_length: Tensor) -> Tensor:
        """video (B, S, Dv), audio (B, L, C), text (B, T, Dt), text_length (B,) -> H_c (B, V+L+T, W)."""
        tokens = [self.audio(audio), self.text(text)]
        if self.video is not None:
            tokens.insert(0, reduce(self.video(video), "b (v p) w -> b v w", "mean", p=self.pool))
        return self.fusion([x + mark for x, mark in zip(tokens, self.modality.unbind(0), strict=True)], text_length)


def video_seconds(video: VideoConfig) -> Tensor:
    """The times (S,) in seconds of the motion features, at which image features are added to them.

    Synchformer cuts the motion frames into segments of 16 that overlap by half and gives 8 features of 2 frames each
    for every segment, so its times go back where a segment begins; other encoders have one feature a frame.
    """
    index = torch.arange(video.steps, device="cpu")
    if video.kind != "frames":
        segment, i = index // 8, index % 8
        return (8 * segment + 2 * i + 1) / video.motion_rate
    return (index + 0.5) / video.motion_rate
