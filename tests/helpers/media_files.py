"""Sounds and films whose every moment is known, written with PyAV, and what is decoded of them."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from audiox_trainer.models.config import CodecConfig, VideoConfig
from audiox_trainer.trainer.media.clips import read_clips
from audiox_trainer.trainer.media.source import MediaError

MONO = CodecConfig("logmel", sample_rate=8000, audio_channels=1, hop=512, frames=32, latent_channels=128)
STEREO = CodecConfig("oobleck", sample_rate=44100, audio_channels=2, hop=2048, frames=10, latent_channels=64)
FRAMES = VideoConfig("frames", dim=64, image_rate=5.0, motion_rate=12.5, size=16, steps=32, pool=2)
CODED = 48  # pixels a side of a film whose pictures are numbered


def sine(hertz=440.0, seconds=1.0, rate=44100, level=0.5):
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def peak_hertz(wave, rate, seconds):
    part = wave[: int(rate * seconds)] * np.hanning(int(rate * seconds))
    return np.abs(np.fft.rfft(part)).argmax() / seconds


def encode(path, codec, wave, rate, layout="mono"):
    """Writes wave (c, n) with one of FFmpeg's encoders."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = layout
        frame = av.AudioFrame.from_ndarray(np.atleast_2d(wave), format="fltp", layout=layout)
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


def film(path, seconds, rate=25, width=48, height=32, sound=None):
    """A video whose frame i is grey with brightness 4·i, with the sound that is given."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 4_000_000
        track = None
        if sound is not None:
            track = container.add_stream("aac", rate=44100)
            track.layout = "mono"
        for i in range(round(seconds * rate)):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 4 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if track is not None:
            frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            frame.sample_rate = 44100
            container.mux(track.encode(frame))
            container.mux(track.encode(None))
    return path


def shown_film(path: Path, pictures: np.ndarray, sound: np.ndarray, codec: str = "mpeg4", rate: int = 5) -> Path:
    """Pictures (n, 3, height, width) uint8 at `rate` per second, with sound (n,) at 44.1 kHz."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *pictures.shape[2:], "yuv420p", 4_000_000
        track = container.add_stream("aac", rate=44100, layout="mono")
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture.transpose(1, 2, 0)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        frame = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return path


def warble(seconds: float, rate: int = 44100) -> np.ndarray:
    """(n,): a tone that never sounds the same twice, and that every codec keeps."""
    steps = np.random.default_rng(0).uniform(200, 3000, round(seconds * 10) + 2)
    times = np.arange(round(seconds * rate)) / rate
    hertz = np.interp(times, np.arange(steps.size) / 10, steps)
    return (0.3 * np.sin(2 * np.pi * np.cumsum(hertz) / rate)).astype(np.float32)


def numbered(number: int) -> av.VideoFrame:
    """A picture in which nine squares, black or white, are the bits of its number."""
    bits = (number >> np.arange(9).reshape(3, 3)) & 1
    grey = np.kron(bits, np.ones((16, 16))) * 255
    return av.VideoFrame.from_ndarray(np.repeat(grey[..., None], 3, 2).astype(np.uint8), format="rgb24")


def number_of(picture: np.ndarray) -> int:
    """The number that a picture (3, CODED, CODED) shows."""
    bits = picture[1, 8::16, 8::16] > 127
    return int((bits.ravel() << np.arange(9)).sum())


def numbered_film(
    path: Path,
    times: Iterable[float],
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    sound: Iterable[tuple[float, np.ndarray]] = (),
    sound_codec: str = "aac",
    unit: Fraction = Fraction(1, 25),
    **stream_settings: Any,
) -> Path:
    """Picture i is shown from times[i] on, in seconds, rounded to `unit`.

    sound: when a stretch of it begins, and what it is, (n,) at 44.1 kHz.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = CODED, CODED, "yuv420p"
        stream.codec_context.time_base = stream.time_base = unit
        for name, value in stream_settings.items():
            setattr(stream.codec_context, name, value)
        track = container.add_stream(sound_codec, rate=44100, layout="mono") if sound else None
        for i, time in enumerate(times):
            frame = numbered(i)
            frame.pts, frame.time_base = round(time / unit), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for begin, wave in sound:
            frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 44100, round(begin * 44100), Fraction(1, 44100)
            container.mux(track.encode(frame))
        if track is not None:
            container.mux(track.encode(None))
    return path


def mixed(path, pictures=None, sound="aac", seconds=4.0, shown=None, rate=48000, **options):
    """A file with both tracks in turn, as a recorder writes it; pictures for `shown` seconds, noise for the bytes."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=options) as container:
        video = container.add_stream(pictures, rate=10) if pictures else None
        if video:
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = container.add_stream(sound, rate=rate)
        audio.layout, audio.bit_rate = "stereo", 128_000
        kind = audio.codec_context.format.name
        for i in range(round(10 * max(seconds, shown or seconds))):
            if video and i < 10 * (shown or seconds):
                noise = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
            if i < 10 * seconds:
                wave = (0.3 * rng.standard_normal((2, rate // 10))).clip(-1, 1).astype(np.float32)
                if kind.startswith("s16"):
                    wave = (wave * 32767).astype(np.int16)
                elif kind.startswith("s32"):
                    wave = (wave * 2.0**30).astype(np.int32)
                block = wave if kind.endswith("p") else np.ascontiguousarray(wave.T.reshape(1, -1))
                frame = av.AudioFrame.from_ndarray(block, format=kind, layout="stereo")
                frame.sample_rate, frame.pts, frame.time_base = rate, i * (rate // 10), Fraction(1, rate)
                container.mux(audio.encode(frame))
        for stream in (video, audio):
            if stream:
                container.mux(stream.encode(None))
    return path


def clips_of(path, codec=MONO, video=None, **segment):
    return list(read_clips(Path(path), video, codec, FRAMES, **segment))


def reason_of(path, **arguments):
    with pytest.raises(MediaError) as caught:
        clips_of(path, **arguments)
    assert str(path) in str(caught.value)
    return caught.value.reason
