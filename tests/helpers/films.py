"""Small videos, made with PyAV, and what is in a file."""

import struct
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile

from tests.helpers.media_files import numbered_film, warble


def wandering(path: Path, seconds: float, codec: str = "mpeg4", late: float | None = 0.0) -> Path:
    """A film at 25 pictures a second, of which some come before those that they build on, and a warble with it that
    begins `late` seconds after it, or none."""
    settings = {"max_b_frames": 2} if codec == "mpeg4" else {}
    sound = () if late is None else [(late, warble(seconds - late))]
    return numbered_film(path, np.arange(round(25 * seconds)) / 25, codec, sound=sound, **settings)


def turn(path: Path) -> None:
    """Says of an mp4 that its pictures lie on their side, as telephones do: the matrix of the first track's header."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version 0: 4 + 20 of times and ids, then reserved, layer, volume
    one = 1 << 16
    data[place : place + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@dataclass(frozen=True)
class Contents:
    """The content of a file as a player gets it."""

    packets: list[bytes]  # of the pictures
    times: np.ndarray  # of the pictures, in seconds
    rotation: int
    pictures: list[bytes]
    file_begins: float  # time stamp of the earliest track
    begins: float  # time stamp of the first sound
    sound: np.ndarray  # (c, n)
    rate: int


def contents(path: Path) -> Contents:
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]
    with av.open(str(path)) as container:
        frames = list(container.decode(container.streams.video[0]))
        file_begins = container.start_time / av.time_base
    sounds = []
    with av.open(str(path)) as container:
        if container.streams.audio:
            sounds = list(container.decode(container.streams.audio[0]))
    return Contents(
        packets,
        np.array([frame.time for frame in frames]),
        frames[0].rotation,
        [frame.to_ndarray(format="rgb24").tobytes() for frame in frames],
        file_begins,
        sounds[0].time if sounds else 0.0,
        np.concatenate([frame.to_ndarray() for frame in sounds], axis=1) if sounds else np.zeros((1, 0)),
        sounds[0].sample_rate if sounds else 0,
    )


def write_media(folder: Path) -> Path:
    """Noise and videos shorter and longer than the small model's clip of 2.048 s."""
    rng = np.random.default_rng(0)
    for name, seconds in (("short.wav", 1.0), ("clip.wav", 2.048), ("long.wav", 7.0)):
        soundfile.write(folder / name, 0.2 * rng.standard_normal(round(8000 * seconds)), 8000)
    soundfile.write(folder / "other_rate.wav", 0.2 * rng.standard_normal((22050, 2)), 22050)
    for name, seconds in (("short.mp4", 1.2), ("long.mp4", 5.0)):
        wandering(folder / name, seconds)
    wandering(folder / "still.mp4", 0.04, late=None)
    return folder
