"""Read a sound for scorers, and say what is wrong with it.

n samples.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import soxr
import torch
from torch import Tensor

from ..media.audio_decode import NativeSound, Wave, decode_native
from ..media.source import MediaError, Reason, open_media

QUIETEST = -80.0  # dB of full scale: the peak below which a sound is silent
CLIPPED = 0.001  # share of samples at full scale above which a sound counts as clipped
NARROW = 0.6  # share of the band that a sound fills at most that was resampled from a lower rate
FLOOR = -95.0  # dB from the loudest frequency, where a band ends: above the noise of 16 bits
SPECTRUM = 4096  # samples of a window


@dataclass(frozen=True)
class SoundFacts:
    """Measures of an intact sound, of the mix to one channel where nothing else is said."""

    seconds: float
    rate: float  # Hz
    channels: float
    peak: float  # dB of full scale
    clipped: float  # share of the samples, of all channels
    band: float  # Hz: the highest frequency with sound
    padded: float = 0.0  # seconds of silence that were added

    def to_tensor(self) -> Tensor:
        return torch.tensor([getattr(self, f.name) for f in fields(self)], dtype=torch.float64)

    @classmethod
    def from_tensor(cls, values: Tensor) -> "SoundFacts":
        return cls(*values.tolist())

    def remarks(self) -> list[str]:
        """Properties that are counted, by name, and do not keep a sound out of the figures."""
        found = {
            "clipped": self.clipped > CLIPPED,
            "mono": self.channels == 1,
            "narrow band": self.band < NARROW * self.rate / 2,
            "padded": self.padded > 0,
        }
        return [name for name, is_so in found.items() if is_so]


@dataclass(frozen=True)
class ReadSound:
    """One channel at each of the rates that scorers want."""

    facts: SoundFacts
    waves: dict[int, Wave]  # (n,) by Hz


def read_sound(path: Path, rates: Collection[int], shortest: float, pad_to: float) -> ReadSound:
    """Decode a file once, mix its channels to their mean and resample it to every rate. Levels are kept.

    Raises MediaError where it is missing, damaged, empty, silent or shorter than `shortest` seconds, after silence was
    added to one below `pad_to` seconds.
    """
    with open_media(path) as source:
        sound = decode_native(source)
    facts = measure(sound, pad_to)
    if facts.peak < QUIETEST:
        raise MediaError(Reason.SILENT, f"{path}: nothing above {QUIETEST:g} dB of full scale")
    if facts.seconds + facts.padded < shortest:
        raise MediaError(
            Reason.TOO_SHORT,
            f"{path}: {facts.seconds:.2f} s, and the scorers need {shortest:g} s; leave it out, or set pad_to",
        )
    wave = np.pad(sound.wave, (0, round(facts.padded * sound.rate)))
    waves = {rate: wave if rate == sound.rate else soxr.resample(wave, sound.rate, rate) for rate in rates}
    return ReadSound(facts, waves)


def measure(sound: NativeSound, pad_to: float = 0.0) -> SoundFacts:
    seconds = sound.wave.size / sound.rate
    peak = 20 * np.log10(max(float(np.abs(sound.wave).max()), 1e-9))
    return SoundFacts(
        seconds, sound.rate, sound.channels, peak, sound.clipped, _band(sound), max(0.0, pad_to - seconds)
    )


def _band(sound: NativeSound) -> float:
    """Hz up to which the mean spectrum is above FLOOR."""
    wave = sound.wave if sound.wave.size >= SPECTRUM else np.pad(sound.wave, (0, SPECTRUM - sound.wave.size))
    windows = np.lib.stride_tricks.sliding_window_view(wave, SPECTRUM)[:: SPECTRUM // 2]
    power = np.square(np.abs(np.fft.rfft(windows * np.hanning(SPECTRUM).astype(np.float32)))).mean(axis=0)
    above = np.flatnonzero(power > power.max() * 10 ** (FLOOR / 10))
    return float(above[-1] * sound.rate / SPECTRUM) if above.size else 0.0
