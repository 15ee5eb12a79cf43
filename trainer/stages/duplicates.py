"""Find lines of nearly the same sound and pictures: other codecs, rates, sizes or levels of one recording, over the
whole manifest.

A fingerprint has 256 bits. Of sound: in 16 bands and between 17 moments, whether the difference of neighbouring bands
grows (Haitsma and Kalker, "A highly robust audio fingerprinting system", ISMIR 2002). Of pictures: at four moments, the
signs of 64 low frequencies (of the kind of pHash: Zauner, "Implementation and benchmarking of perceptual image hash
functions", 2010). Two lines are compared if they agree in one of the eight parts of 32 bits of either, so that no line
is compared with all others (locality-sensitive hashing). Parts whose bits are all the same, as those of digital silence
and black pictures are, say nothing: without them every line with a silent beginning would be compared with every other.
"""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..media.audio_decode import Wave

BANDS, MOMENTS = 17, 17
LOWEST, HIGHEST = 100.0, 3600.0  # Hz; telephones and every codec keep this
FRAME, HOP = 2048, 512  # samples of a spectrum, and from one to the next
LEAST = 32  # bits of either kind
PARTS = 8
SAYS_NOTHING = 0, 2**32 - 1  # a part of equal bits
SAME = 32  # bits of 256 that may differ; of unrelated sounds half of them do
VIEWS = 4  # moments at which pictures are looked at
# Of the low frequencies of pictures, by their sum.
PLACES: NDArray[np.int64] = np.array(sorted(np.ndindex(11, 11), key=lambda place: (sum(place), place))[1:65])
FLAT = 1.0  # of 255: the amplitude below which pictures show nothing


def band_energies(wave: Wave, rate: int) -> NDArray[np.float32]:
    """Energies (frames, BANDS) of a sound (1, n) in bands of equal ratio."""
    if wave.shape[1] < FRAME:
        return np.zeros((0, BANDS), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(wave[0], FRAME)[::HOP] * _window()
    bins = _bins(rate)
    spectra = np.fft.rfft(frames)[:, : bins[-1]]
    power: NDArray[np.float32] = np.square(spectra.real) + np.square(spectra.imag)
    return np.add.reduceat(power, bins[:-1], axis=1)


@cache
def _window() -> NDArray[np.float32]:
    return np.hanning(FRAME).astype(np.float32)


@cache
def _bins(rate: int) -> NDArray[np.int64]:
    """(BANDS + 1,): the first of each band, and the one after the last."""
    return np.round(np.geomspace(LOWEST, HIGHEST, BANDS + 1) * FRAME / rate).astype(int)


def fingerprint(energies: Sequence[NDArray[np.float32]]) -> str:
    """64 hexadecimal digits of the energies of consecutive pieces; empty for sound that is too short, or too steady to
    be told from others."""
    whole = np.concatenate(energies) if energies else np.zeros((0, BANDS), np.float32)
    if len(whole) < 2 * MOMENTS:
        return ""
    spectra = np.log(_moments(whole, MOMENTS) + 1e-9)  # (MOMENTS, BANDS)
    return _hexadecimal(np.diff(np.diff(spectra, axis=1), axis=0) > 0)  # (16, 16)


def low_frequencies(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n, 3, size, size) -> (n, 64): amplitudes of the lowest frequencies of the grey pictures, without their mean."""
    basis = _cosines(images.shape[-1])
    plane = basis @ images.mean(axis=1, dtype=np.float32) @ basis.T  # (n, 11, 11)
    found: NDArray[np.float32] = plane[:, PLACES[:, 0], PLACES[:, 1]]
    return found


@cache
def _cosines(size: int) -> NDArray[np.float32]:
    """(11, size): the first rows of a discrete cosine transform."""
    angles = np.pi / size * np.outer(np.arange(11), np.arange(size) + 0.5)
    return (2 / size * np.cos(angles)).astype(np.float32)


def picture_fingerprint(frequencies: Sequence[NDArray[np.float32]]) -> str:
    """64 hexadecimal digits of the low frequencies of consecutive pictures; empty for too few of them, or none on which
    anything is seen."""
    whole = np.concatenate(frequencies) if frequencies else np.zeros((0, len(PLACES)), np.float32)
    if len(whole) < VIEWS or np.abs(whole).max() < FLAT:
        return ""
    return _hexadecimal(_moments(whole, VIEWS) > FLAT / 100)  # (4, 64); above the rounding of what is flat


def line_fingerprint(energies: Sequence[NDArray[np.float32]], frequencies: Sequence[NDArray[np.float32]]) -> str:
    """The fingerprints of a line's sound and pictures, with a hyphen between them; empty without either."""
    both = f"{fingerprint(energies)}-{picture_fingerprint(frequencies)}"
    return "" if both == "-" else both


def _moments(rows: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """(n, k) -> (count, k): means around some moments, which overlap, so that a few milliseconds more at the beginning
    change little."""
    middles = np.linspace(0, len(rows) - 1, count)
    distance = np.abs(np.arange(len(rows)) - middles[:, None]) * (count - 1) / (len(rows) - 1)
    weights = np.maximum(0, 1.5 - distance)
    means: NDArray[np.float64] = weights @ rows / weights.sum(axis=1, keepdims=True)
    return means


def _hexadecimal(bits: NDArray[np.bool_]) -> str:
    """Of 256 bits; empty if nearly all are the same, as of what is too steady to be told from others."""
    return np.packbits(bits).tobytes().hex() if LEAST <= bits.sum() <= bits.size - LEAST else ""


def near_duplicates(fingerprints: Sequence[str]) -> dict[int, int]:
    """For each line that resembles an earlier one, which stays, the place of that one. Lines with the same kinds of
    fingerprints (sound, pictures, or both) resemble each other if all of them do; those without resemble nothing.

    Compares lines that agree in a part with bits of both kinds, so few of different sound. Takes about 350 bytes of
    memory per line, 480 per film, with those of `fingerprints`.
    """
    kinds = dict[tuple[bool, bool], list[int]]()
    for place, text in enumerate(fingerprints):
        sound, _, pictures = text.partition("-")
        kinds.setdefault((bool(sound), bool(pictures)), []).append(place)
    found = dict[int, int]()
    for (sounds, shows), places in kinds.items():
        halves = [0] * sounds + [2] * shows
        texts = ["".join(fingerprints[i].partition("-")[half] for i in places) for half in halves]
        prints = [np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, 32) for text in texts]
        originals = _originals(prints) if prints else []
        found |= {places[i]: places[first] for i, first in enumerate(originals) if first != i}
    return found


def _originals(prints: Sequence[NDArray[np.uint8]]) -> list[int]:
    """The first line that each one resembles, or itself. prints: (N, 32) of each kind."""
    original = np.arange(len(prints[0]))
    for parts in (bits.view(np.uint32) for bits in prints):  # (N, PARTS)
        for part in range(PARTS):
            order = np.argsort(parts[:, part], kind="stable")
            keys = parts[order, part]
            starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1], True])
            for start, end in pairwise(starts):
                if end - start > 1 and keys[start] not in SAYS_NOTHING:
                    _join_alike(order[start:end], prints, original)
    return [_root(original, i) for i in range(len(original))]


def _join_alike(group: NDArray[np.int64], prints: Sequence[NDArray[np.uint8]], original: NDArray[np.int64]) -> None:
    """Of lines with the same part, those whose fingerprints are alike belong to the first of them."""
    left = group
    while len(left) > 1:
        first, rest = left[0], left[1:]
        distances = [np.bitwise_count(bits[rest] ^ bits[first]).sum(axis=1) for bits in prints]
        alike = np.max(distances, axis=0) <= SAME
        for other in rest[alike]:
            a, b = sorted((_root(original, first), _root(original, other)))
            original[b] = a
        left = rest[~alike]


def _root(original: NDArray[np.int64], i: int) -> int:
    while original[i] != i:
        i = int(original[i])
    return i
