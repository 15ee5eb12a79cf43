"""Measure a line of a manifest by decoding it once: its length, loudness and pictures."""

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ...models.config import CodecConfig, VideoConfig
from ..manifest.manifest import ManifestEntry
from ..media.audio_decode import SLACK, SoundSegment, Wave, decode_all
from ..media.clips import Clip, frames_in, read_clips
from ..media.source import MediaError, Reason, open_media
from ..media.video_decode import VIDEO_SLACK
from ..prepare.filters import PIXEL_STEP, WINDOW
from .duplicates import band_energies, low_frequencies

RATE = 16000  # Hz
LONGEST = 600.0  # seconds of a line that networks hear at once
SIGN_OF_LIFE = 5.0  # seconds between two
# Pieces of a second: sound for one channel, and pictures at five per second.
SOUND = CodecConfig("logmel", sample_rate=RATE, audio_channels=1, hop=160, frames=100, latent_channels=1)
PICTURES = VideoConfig("frames", dim=1, image_rate=5.0, motion_rate=5.0, size=64, steps=1, pool=1)


@dataclass
class Measured:
    """What decoding a line has shown. Shares are of its sound, or of the steps from picture to picture."""

    seconds: float = 0.0
    peak: float = -np.inf  # dB of full scale
    clipped: float = 0.0  # share
    levels: list[float] = field(default_factory=list)  # dB of full scale of each WINDOW
    energies: list[NDArray[np.float32]] = field(default_factory=list)  # as of `band_energies`, if asked for
    looks: list[NDArray[np.float32]] = field(default_factory=list)  # as of `low_frequencies`, if asked for
    changes: list[float] = field(default_factory=list)  # of 255: mean change of a pixel, step by step


def pieces(
    entry: ManifestEntry, pictures: bool, sound_slack: float = SLACK, video_slack: float = VIDEO_SLACK
) -> Iterator[Clip]:
    """A line's sound, and its pictures if it has and needs them. Raises MediaError as `read_clips`."""
    return read_clips(
        entry.audio, entry.video if pictures else None, SOUND, PICTURES if pictures else None, entry.start, entry.end,
        sound_slack=sound_slack, video_slack=video_slack, allow_private=entry.allow_private,
    )  # fmt: skip


def whole_sound(entry: ManifestEntry, rate: int, channels: int = 1, slack: float = SLACK) -> Wave:
    """(channels, n): a line's sound, for networks. Raises MediaError, also where it is longer than LONGEST."""
    codec = replace(SOUND, sample_rate=rate, audio_channels=channels)
    segment = SoundSegment(entry.start, entry.end, entry.video is not None, slack)
    with open_media(entry.audio, entry.allow_private) as source:
        try:
            return decode_all(source, codec, segment, LONGEST)
        except ValueError as error:
            raise MediaError(Reason.TOO_LONG, f"{source.name}: {error}, which networks hear: cut it first") from None


def measure(clips: Iterator[Clip], prints: bool = False) -> Generator[None, None, Measured]:
    """Yields now and then, because long media take long, and returns what was measured; with `prints` also what
    fingerprints are made of. Raises MediaError as the pieces do."""
    measured, clipped, last, sign = Measured(), 0.0, None, time.monotonic()
    for clip in clips:
        if time.monotonic() - sign > SIGN_OF_LIFE:
            sign = time.monotonic()
            yield
        measured.seconds = clip.start + clip.seconds
        measured.peak = max(measured.peak, clip.peak)
        clipped += clip.clipped * clip.seconds
        wave = clip.wave[:, : round(clip.seconds * RATE)]
        measured.levels += levels(wave)
        if prints:
            measured.energies.append(band_energies(wave, RATE))
        images = clip.images[: frames_in(clip.seconds, PICTURES.image_rate)]
        if prints and len(images):
            measured.looks.append(low_frequencies(images))
        images = images[:, :, ::PIXEL_STEP, ::PIXEL_STEP]
        if len(images):
            series = images if last is None else np.concatenate([last, images])
            measured.changes += _changes(series)
            last = images[-1:]
    measured.clipped = clipped / max(measured.seconds, 1e-9)
    return measured


def levels(wave: Wave) -> list[float]:
    """dB of full scale of each whole WINDOW of a sound (1, n); of the whole if it is shorter."""
    size = max(1, min(round(WINDOW * RATE), wave.shape[1]))
    windows = wave[0, : wave.shape[1] // size * size].reshape(-1, size)
    power = np.square(windows, dtype=np.float32).mean(axis=1)
    found: list[float] = (10 * np.log10(np.maximum(power, 1e-12))).tolist()
    return found


def _changes(images: NDArray[np.uint8]) -> list[float]:
    found: list[float] = np.abs(np.diff(images.astype(np.int16), axis=0)).mean(axis=(1, 2, 3)).tolist()
    return found
