"""The encoder or codec that a configuration names. Frozen weights are loaded once in a process, and shared.

Modules that need transformers or diffusers are imported only when one of their encoders is built.
"""

from functools import cache

from ..config import CodecConfig, TextConfig, VideoConfig
from .base import AudioCodec, TextEncoder, VideoEncoder
from .embedded import FrameEncoder, LogMelCodec, WordEncoder
from .runtime import Runtime


def build_codec(config: CodecConfig, runtime: Runtime | None = None) -> AudioCodec:
    """The default runtime is `Runtime.for_device()`. Raises ValueError if weights are missing or do not fit."""
    return _codec(config, runtime or Runtime.for_device())


def build_text_encoder(config: TextConfig, runtime: Runtime | None = None) -> TextEncoder:
    """The default runtime is `Runtime.for_device()`. Raises ValueError if weights are missing or do not fit."""
    return _text_encoder(config, runtime or Runtime.for_device())


def build_video_encoder(config: VideoConfig, runtime: Runtime | None = None) -> VideoEncoder:
    """The default runtime is `Runtime.for_device()`. Raises ValueError if weights are missing or do not fit."""
    return _video_encoder(config, runtime or Runtime.for_device())


def check_text_encoder(config: TextConfig) -> None:
    """Raises ValueError if the weights are missing or have another size. Reads sizes alone."""
    if config.kind == "t5":
        from .t5 import check_t5

        check_t5(config)


@cache
def _codec(config: CodecConfig, runtime: Runtime) -> AudioCodec:
    if config.kind == "logmel":
        return LogMelCodec(config)
    from .oobleck import OobleckCodec

    return OobleckCodec.load(config, runtime)


@cache
def _text_encoder(config: TextConfig, runtime: Runtime) -> TextEncoder:
    if config.kind == "words":
        return WordEncoder(config)
    from .t5 import T5TextEncoder

    return T5TextEncoder.load(config, runtime)


@cache
def _video_encoder(config: VideoConfig, runtime: Runtime) -> VideoEncoder:
    if config.kind == "frames":
        return FrameEncoder(config)
    from .clip_sync import ClipSyncEncoder

    return ClipSyncEncoder.load(config, runtime)
