"""Decide which clips are good enough: the filters of the paper's first stage (section III-A), as numbers.

Broken, missing and empty tracks and silent clips are always left out (`source.Reason`). The filters here are set by the
JSON file of `launch/prepare.py files --filters`; without one, everything else is kept. The stage `filter` judges whole
lines by the same numbers, and by words and networks (`stages/filter_config.py`).
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from ...models.strict import NonNegativeFloat, Share
from ..media.audio_decode import SLACK, Wave
from ..media.clips import Clip
from ..media.source import Reason
from ..media.video_decode import VIDEO_SLACK

WINDOW = 0.05  # seconds over which loudness is measured
PIXEL_STEP = 4  # every fourth pixel is compared from image to image


class Filtered(StrEnum):
    """The reason why a file or a clip is left out although it is intact."""

    SHORT_FILE = "short file"
    LONG_FILE = "long file"
    SHORT_CLIP = "short clip"
    SILENCE = "mostly silent"
    CLIPPING = "clipping"
    STATIC = "static video"


@dataclass(frozen=True)
class FiltersConfig:
    """Limits for the clips to keep. The defaults keep everything that is intact and not silent."""

    max_missing_sound: NonNegativeFloat = SLACK  # seconds that a file's sound may lack of its declared length
    max_missing_video: NonNegativeFloat = VIDEO_SLACK  # seconds of sound at either end that may have no pictures
    min_peak: float = -80.0  # dB of full scale that a clip has to reach
    min_file_seconds: NonNegativeFloat = 0.0  # seconds of a file, or of the segment that its line names
    max_file_seconds: NonNegativeFloat = 0.0  # seconds; 0 is without limit
    min_clip_seconds: NonNegativeFloat = 0.0  # seconds of sound in a clip; the rest of it is padding
    max_silent: Share = 1.0  # largest share of a clip's sound that is below `silence_level`
    silence_level: float = -60.0  # dB of full scale, over WINDOW
    max_clipped: Share = 1.0  # largest share of a clip's samples that ran into full scale
    max_static: Share = 1.0  # largest share of the steps from image to image in which the picture stands still
    static_threshold: NonNegativeFloat = 0.5  # of 255: the mean change of a pixel below which it does

    def __post_init__(self) -> None:
        if 0 < self.max_file_seconds <= self.min_file_seconds:
            raise ValueError(
                f"max_file_seconds: {self.max_file_seconds} must be above min_file_seconds, {self.min_file_seconds}"
            )


def file_fault(seconds: float, ended: bool, filters: FiltersConfig) -> tuple[str, str] | None:
    """Reason and detail if a file is left out; `seconds` of sound were read, and the file has `ended` or not."""
    if filters.max_file_seconds and seconds > filters.max_file_seconds:
        return Filtered.LONG_FILE, f"longer than {filters.max_file_seconds:g} s"
    if ended and seconds < filters.min_file_seconds:
        return Filtered.SHORT_FILE, f"{seconds:.2f} s, shorter than {filters.min_file_seconds:g} s"
    return None


def clip_fault(clip: Clip, rate: int, filters: FiltersConfig) -> tuple[str, str] | None:
    """Reason and detail if a clip, whose sound has `rate` Hz, is left out."""
    if clip.peak < filters.min_peak:
        return Reason.SILENT, f"nothing above {filters.min_peak:g} dB"
    if clip.seconds < filters.min_clip_seconds:
        return Filtered.SHORT_CLIP, f"{clip.seconds:.2f} s of sound, less than {filters.min_clip_seconds:g}"
    if clip.clipped > filters.max_clipped:
        return (
            Filtered.CLIPPING,
            f"{clip.clipped:.1%} of the samples at full scale, more than {filters.max_clipped:.1%}",
        )
    return _silence_fault(clip, rate, filters) or _static_fault(clip, filters)


def _silence_fault(clip: Clip, rate: int, filters: FiltersConfig) -> tuple[str, str] | None:
    if filters.max_silent == 1:
        return None
    share = silent_share(clip.wave[:, : round(clip.seconds * rate)], rate, filters.silence_level)
    if share > filters.max_silent:
        return Filtered.SILENCE, f"{share:.0%} below {filters.silence_level:g} dB, more than {filters.max_silent:.0%}"
    return None


def _static_fault(clip: Clip, filters: FiltersConfig) -> tuple[str, str] | None:
    if filters.max_static == 1 or len(clip.images) < 2:
        return None
    small = clip.images[..., ::PIXEL_STEP, ::PIXEL_STEP].astype(np.int16)
    change = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))
    share = float((change < filters.static_threshold).mean())
    if share > filters.max_static:
        return Filtered.STATIC, f"the picture does not move for {share:.0%}, more than {filters.max_static:.0%}"
    return None


def silent_share(wave: Wave, rate: int, level: float) -> float:
    """The share of a sound (c, n) whose RMS over WINDOW is below `level` dB of full scale."""
    size = max(1, min(round(WINDOW * rate), wave.shape[1]))
    windows = wave[:, : wave.shape[1] // size * size].reshape(len(wave), -1, size)
    power = np.square(windows, dtype=np.float32).mean(axis=(0, 2))
    return float((power < 10 ** (level / 10)).mean())
