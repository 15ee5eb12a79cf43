"""Encoders and codecs of the configured sizes and the released depths with random weights, to measure speed without any
download."""

from typing import Any

from ..config import CodecConfig, TextConfig, VideoConfig
from .base import AudioCodec, TextEncoder, VideoEncoder
from .build import build_codec, build_text_encoder, build_video_encoder
from .runtime import Runtime

HEAD = 64  # width of an attention head in T5-base, CLIP ViT-B and Synchformer
LAYERS = 12  # of T5-base and CLIP ViT-B
WORDS = 32_000  # that T5's tokenizer knows


def random_codec(config: CodecConfig, runtime: Runtime) -> AudioCodec:
    """Raises ValueError where Oobleck as it was released has another number of samples per frame."""
    if config.kind == "logmel":
        return build_codec(config, runtime)
    from .libraries import diffusers
    from .oobleck import OobleckCodec

    model = diffusers().AutoencoderOobleck(
        encoder_hidden_size=2 * config.latent_channels,
        decoder_channels=2 * config.latent_channels,
        decoder_input_channels=config.latent_channels,
        audio_channels=config.audio_channels,
        sampling_rate=config.sample_rate,
    )
    if model.hop_length != config.hop:
        raise ValueError(
            f"model.codec.hop: {config.hop}, but Oobleck as it was released has {model.hop_length}; set it to that, or "
            f"give weights instead of random ones"
        )
    return OobleckCodec(model, runtime)


def random_video_encoder(config: VideoConfig, runtime: Runtime) -> VideoEncoder:
    if config.kind == "frames":
        return build_video_encoder(config, runtime)
    from .clip import ClipImageEncoder
    from .clip_sync import ClipSyncEncoder
    from .libraries import transformers
    from .synchformer import SyncEncoder, Synchformer, SynchformerConfig

    heads = max(1, config.dim // HEAD)
    vision = transformers().CLIPVisionConfig(
        hidden_size=config.dim,
        intermediate_size=4 * config.dim,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        image_size=config.size,
        patch_size=32,
    )
    images = ClipImageEncoder(transformers().CLIPVisionModel(vision), runtime)
    sync = Synchformer(SynchformerConfig(width=config.dim, heads=heads, size=config.size))
    return ClipSyncEncoder(config, images, SyncEncoder(sync, runtime))


def random_text_encoder(config: TextConfig, runtime: Runtime) -> TextEncoder:
    """A word is a token, and its number a hash."""
    if config.kind == "words":
        return build_text_encoder(config, runtime)
    from .libraries import transformers
    from .t5 import T5TextEncoder

    sizes = transformers().T5Config(
        d_model=config.dim,
        d_kv=HEAD,
        d_ff=4 * config.dim,
        num_layers=LAYERS,
        num_heads=max(1, config.dim // HEAD),
    )
    return T5TextEncoder(config, transformers().T5EncoderModel(sizes), _tokens_of_words, runtime)


def _tokens_of_words(texts: list[str], truncation: bool, max_length: int) -> dict[str, Any]:
    """As a tokenizer of transformers: numbers of a text's words, and of its end."""
    ids = [[2 + sum(word.encode()) * 7919 % (WORDS - 2) for word in text.split()] for text in texts]
    return {"input_ids": [[*row[: max_length - 1], 1] for row in ids]}
