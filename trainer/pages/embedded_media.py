"""Sounds and their spectrograms as data URIs, so that a page needs no other file."""

import base64
import io
from dataclasses import dataclass

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...models.encoders.embedded import mel_filters

WINDOW, HOP, BANDS = 512, 64, 96
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz
QUIET = -75.0  # dB of full scale: the dark end of the colours
# Anchors of a map from dark over purple and orange to light: equal steps of loudness look like equal steps.
_ANCHORS = ((10, 8, 30), (60, 15, 110), (140, 40, 125), (215, 70, 95), (250, 135, 95), (254, 205, 145), (252, 250, 200))


@dataclass(frozen=True)
class Column:
    """One rendering of a prompt: wave (channels, samples), what the judge heard in it, and whether that was right."""

    name: str
    wave: Tensor
    heard: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Sound:
    """A prompt with the true scene and the models' answers side by side."""

    kind: str
    text: str
    columns: tuple[Column, ...]
    sample_rate: int  # Hz


def wav_uri(wave: Tensor, sample_rate: int) -> str:
    """wave (channels, samples) in [-1, 1] -> 16-bit wav."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.float().clamp(-1, 1).T.cpu().numpy(), sample_rate, format="WAV", subtype="PCM_16")
    return "data:audio/wav;base64," + base64.b64encode(buffer.getvalue()).decode()


def small_uri(wave: Tensor, sample_rate: int) -> str:
    """wave (1 or 2 channels, samples) in [-1, 1] -> mp3, a tenth of a wav, at the rates that it knows."""
    if sample_rate not in MP3_RATES:
        return wav_uri(wave, sample_rate)
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.float().clamp(-1, 1).T.cpu().numpy(), sample_rate, format="MP3")
    return "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture_uri(picture: NDArray[np.uint8]) -> str:
    """picture (3, height, width) -> jpeg."""
    buffer = io.BytesIO()
    Image.fromarray(picture.transpose(1, 2, 0)).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def spectrogram_uri(wave: Tensor, sample_rate: int) -> str:
    """wave (channels, samples) -> png of its mel spectrogram, low bands at the bottom."""
    buffer = io.BytesIO()
    picture = Image.fromarray(spectrogram(wave, sample_rate))
    picture.putpalette(_palette())  # the loudness becomes an index
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def spectrogram(wave: Tensor, sample_rate: int) -> NDArray[np.uint8]:
    """wave (channels, samples) -> loudness (BANDS, samples / HOP) from 0 at QUIET to 255 at the loudest band."""
    window = torch.hann_window(WINDOW)
    mono = wave.float().mean(0).cpu()
    spectrum = torch.stft(mono, WINDOW, HOP, window=window, return_complex=True, pad_mode="constant")
    mel = mel_filters(sample_rate, BANDS, WINDOW) @ spectrum.abs() / window.sum()
    loudness = 20 * torch.log10(mel.clamp_min(1e-6))
    top = max(float(loudness.max()), QUIET + 1)
    scaled = ((loudness - QUIET) / (top - QUIET)).clamp(0, 1)
    return (255 * scaled).round().byte().flip(0).numpy()


def _palette() -> list[int]:
    places = np.linspace(0, 255, len(_ANCHORS))
    channels = [np.interp(np.arange(256), places, [anchor[c] for anchor in _ANCHORS]) for c in range(3)]
    return [int(value) for value in np.stack(channels, axis=1).round().flatten()]
