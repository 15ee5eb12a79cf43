"""Loudness of a sound by ITU-R BS.1770, which FFmpeg's filter ebur128 measures.

c sound channels, n samples.
"""

from fractions import Fraction

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

BLOCK = 0.4  # seconds, the shortest sound that has a loudness; a shorter one is measured as if it were repeated
SILENT = -70.0  # LUFS, below which nothing counts
LAYOUTS = {1: "mono", 2: "stereo"}

Wave = NDArray[np.float32]


def integrated_loudness(wave: Wave, rate: int) -> float:
    """LUFS of a wave (c, n); SILENT for one that is too quiet to be measured. Raises ValueError where it has more than
    two channels, for whose places nothing stands."""
    channels, samples = wave.shape
    if channels not in LAYOUTS:
        raise ValueError(f"loudness: a sound of {channels} channels; it is measured of mono and stereo")
    repeats = -(-round(2 * BLOCK * rate) // samples) if samples < round(BLOCK * rate) else 1
    graph = Graph()
    source = graph.add_abuffer(sample_rate=rate, format="fltp", layout=LAYOUTS[channels], time_base=Fraction(1, rate))
    meter, sink = graph.add("ebur128", "metadata=1:framelog=quiet"), graph.add("abuffersink")
    source.link_to(meter)
    meter.link_to(sink)
    graph.configure()
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(np.tile(wave, repeats)), "fltp", LAYOUTS[channels])
    frame.sample_rate, frame.pts = rate, 0
    graph.push(frame)
    graph.push(None)
    loudness = SILENT
    while True:
        try:
            metadata = graph.pull().metadata  # none of an end that is shorter than a tenth of a second
            loudness = float(metadata.get("lavfi.r128.I", loudness))
        except av.error.EOFError:
            return loudness


def normalize_loudness(wave: Wave, rate: int, target: float) -> Wave:
    """The wave (c, n), scaled to `target` LUFS. One that is silent stays so.

    Raises ValueError where its peaks would leave [-1, 1].
    """
    loudness, peak = integrated_loudness(wave, rate), float(np.abs(wave).max(initial=0))
    if loudness <= SILENT or not peak:
        return wave
    gain = 10 ** ((target - loudness) / 20)
    if peak * gain > 1:
        highest = loudness - 20 * np.log10(peak)
        raise ValueError(
            f"loudness: at {target:g} LUFS the peaks of this sound would be clipped; it can have at most {highest:.1f}"
        )
    return np.float32(gain) * wave
