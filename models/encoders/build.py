"""The encoder or codec that a configuration names."""

from ..config import CodecConfig, TextConfig, VideoConfig
from .base import AudioCodec, TextEncoder, VideoEncoder
from .embedded import FrameEncoder, LogMelCodec, WordEncoder


def build_codec(config: CodecConfig) -> AudioCodec:
    """Raises ValueError for a kind that does not exist."""
    if config.kind == "logmel":
        return LogMelCodec(config)
    raise ValueError(f"codec.kind: {config.kind!r} is not allowed; expected 'logmel' or 'oobleck'")


def build_text_encoder(config: TextConfig) -> TextEncoder:
    """Raises ValueError for a kind that does not exist."""
    if config.kind == "words":
        return WordEncoder(config)
    raise ValueError(f"text.kind: {config.kind!r} is not allowed; expected 'words' or 't5'")


def build_video_encoder(config: VideoConfig) -> VideoEncoder:
    """Raises ValueError for a kind that does not exist."""
    if config.kind == "frames":
        return FrameEncoder(config)
    raise ValueError(f"video.kind: {config.kind!r} is not allowed; expected 'frames' or 'clip_sync'")
