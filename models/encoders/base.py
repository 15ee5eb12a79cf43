"""The three interfaces behind which every frozen encoder stands.

Results are float32, free of gradients, and lie where the tensors lie that were given; features of texts lie where the
encoder computes. Batches may have any size: encoders cut them so that memory stays bounded.

B batch, T text tokens, D feature width, L latent frames, C latent channels.
"""

from typing import Protocol

from torch import Tensor


class AudioCodec(Protocol):
    """Sound to latents and back."""

    def encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """wave (B, audio_channels, samples) in [-1, 1] -> the latents' mean and standard deviation, (B, L, C) each."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, L, C) -> wave (B, audio_channels, L·hop) in [-1, 1]."""
        ...


class TextEncoder(Protocol):
    """Captions to features."""

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """-> features (B, T, D), zero past each text's end, and lengths (B,) int64, at least 1 each.

        T is the longest text of the batch, rounded up to the configured multiple and cut at `max_tokens`.
        """
        ...


class VideoEncoder(Protocol):
    """Frames to features."""

    def __call__(self, images: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, N, 3, size, size) at image_rate, motion (B, M, 3, size, size) at motion_rate, both uint8
        -> image features (B, N, D), or of every token (B, N·P, D), and motion features (B, steps, D)."""
        ...

    def check_frames(self, count: int) -> None:
        """Raises ValueError where `count` motion frames of a clip do not give the configured steps."""
        ...
