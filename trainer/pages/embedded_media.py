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
# Colours from dark over purple and orange to light, at equal distances of loudness.
COLOURS = ("#0a081e", "#3c0f6e", "#8c287d", "#d7465f", "#fa875f", "#fecd91", "#fcfac8")


@dataclass(frozen=True)
class Rendition:
    """One sound for a prompt: wave (channels, samples), the judge's annotation, and whether that is correct."""

    name: str
    wave: Tensor
    judged: str = ""
    correct: bool | None = None


@dataclass(frozen=True)
class SoundComparison:
    """A prompt with the true scene and the models' sounds side by side."""

    kind: str
    text: str
    renditions: tuple[Rendition, ...]
    sample_rate: int  # Hz


def wav_uri(wave: Tensor, sample_rate: int) -> str:
    """wave (channels, samples) in [-1, 1] -> 16-bit wav."""
    return _sound_uri(wave, sample_rate, "audio/wav", format="WAV", subtype="PCM_16")


def mp3_uri(wave: Tensor, sample_rate: int) -> str:
    """wave (1 or 2 channels, samples) in [-1, 1] -> mp3, a tenth of a wav; a wav at rates that mp3 does not have."""
    known = sample_rate in MP3_RATES
    return _sound_uri(wave, sample_rate, "audio/mpeg", format="MP3") if known else wav_uri(wave, sample_rate)


def picture_uri(picture: NDArray[np.uint8]) -> str:
    """picture (3, height, width) -> jpeg."""
    buffer = io.BytesIO()
    Image.fromarray(picture.transpose(1, 2, 0)).save(buffer, "JPEG", quality=80)
    return _uri("image/jpeg", buffer)


def spectrogram_uri(wave: Tensor, sample_rate: int) -> str:
    """wave (channels, samples) -> png of its mel spectrogram, low bands at the bottom."""
    buffer = io.BytesIO()
    spectrogram_picture(wave, sample_rate).save(buffer, "PNG", optimize=True)
    return _uri("image/png", buffer)


def spectrogram_picture(wave: Tensor, sample_rate: int) -> Image.Image:
    """wave (channels, samples) -> its mel spectrogram in colours, low bands at the bottom."""
    picture = Image.fromarray(spectrogram(wave, sample_rate))
    picture.putpalette(_palette())  # the loudness becomes an index
    return picture


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


def _sound_uri(wave: Tensor, sample_rate: int, kind: str, **encoding: str) -> str:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.float().clamp(-1, 1).T.cpu().numpy(), sample_rate, **encoding)
    return _uri(kind, buffer)


def _uri(kind: str, buffer: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _palette() -> list[int]:
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS])
    places = np.linspace(0, 255, len(anchors))
    channels = [np.interp(np.arange(256), places, anchors[:, c]) for c in range(3)]
    return [int(value) for value in np.stack(channels, axis=1).round().flatten()]
