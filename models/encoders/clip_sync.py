"""CLIP for single images and Synchformer for motion, as one video encoder.

B clips, N images, M motion frames, D feature width.
"""

from typing import Self

from torch import Tensor

from ..config import VideoConfig
from .clip import ClipImageEncoder
from .runtime import Runtime
from .synchformer import STEPS, SyncEncoder, segments_in


class ClipSyncEncoder:
    """Both kinds of features stay apart: they are added on the grid of the motion features when a batch is made."""

    def __init__(self, config: VideoConfig, images: ClipImageEncoder, motion: SyncEncoder) -> None:
        self.config, self.images, self.motion = config, images, motion

    @classmethod
    def load(cls, config: VideoConfig, runtime: Runtime) -> Self:
        """Raises ValueError where there are no weights, or others than the configuration says."""
        motion = SyncEncoder.load(config, runtime)  # first: its absence is noticed at once
        return cls(config, ClipImageEncoder.load(config, runtime), motion)

    def __call__(self, images: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, N, 3, size, size) and motion (B, M, 3, size, size), uint8 -> (B, N, D) or (B, N·P, D),
        (B, steps, D).

        Raises ValueError where M frames do not give the configured steps.
        """
        self.check_frames(motion.shape[1])
        return self.images(images), self.motion(motion)

    def check_frames(self, count: int) -> None:
        """Raises ValueError where `count` motion frames of a clip do not give the configured steps."""
        steps = STEPS * segments_in(count)
        if steps != self.config.steps:
            raise ValueError(
                f"model.video.steps: {count} motion frames of a clip give {steps} Synchformer features, the "
                f"configuration says {self.config.steps}; set it to {steps}"
            )
