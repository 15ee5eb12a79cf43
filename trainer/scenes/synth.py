"""Render sound and pictures of scenes. n is the number of samples of one event or note."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .scene import (
    AUDIO_CATEGORIES,
    EXTRA_CATEGORIES,
    INSTRUMENTS,
    SAMPLE_RATE,
    SAMPLES,
    Note,
    Scene,
    SoundEvent,
    scene_notes,
)

FRAMES = 32
FRAME_RATE = 15.625  # frames per second: 32 frames last as long as the sound
SIZE = 16  # pixels

Wave = NDArray[np.float32]

# Tables are computed once. A scene is then a few look-ups and single-precision sines, about a millisecond.
_TAU = np.float32(2 * np.pi)
_TIME: Wave = np.arange(SAMPLES, dtype=np.float32) / np.float32(SAMPLE_RATE)
_TABLE = 2048  # samples of one period in a wave table


def _wave_table(amplitudes: list[float]) -> Wave:
    """One period of a tone with these amplitudes of its harmonics, peak 1."""
    phase = 2 * np.pi * np.arange(_TABLE) / _TABLE
    wave = np.zeros(_TABLE)
    for k, amplitude in enumerate(amplitudes, start=1):
        wave += amplitude * np.sin(k * phase + 0.7 * k * k)  # staggered phases keep the peak low
    return (wave / np.abs(wave).max()).astype(np.float32)


def _noise_bank(low: float) -> Wave:
    """Four seconds of noise above `low` Hz, peak about 1."""
    white = np.random.default_rng(7).standard_normal(4 * SAMPLE_RATE)
    spectrum = np.fft.rfft(white)
    spectrum[np.fft.rfftfreq(white.size, 1 / SAMPLE_RATE) < low] = 0
    wave = np.fft.irfft(spectrum)
    return np.clip(wave / (3 * wave.std()), -1, 1).astype(np.float32)


_WHITE, _HIGH = _noise_bank(20.0), _noise_bank(2200.0)
_BUZZ = _wave_table([1 / k if k % 2 else 0.15 / k for k in range(1, 28)])
_HORN = _wave_table([1.0, 0.8, 0.6, 0.35, 0.2])
_BARK = _wave_table([0.5, 1.0, 0.9, 0.3, 0.15])  # formant near the second and third harmonic
_DULL = {
    "piano": _wave_table([1.0, 0.4, 0.15]),
    "flute": _wave_table([1.0, 0.08]),
    "organ": _wave_table([1.0, 0.8, 0.0, 0.6, 0.0, 0.0, 0.0, 0.5]),
    "guitar": _wave_table([1.0, 0.7, 0.4, 0.2]),
}
_BRIGHT = {  # for the attack of instruments that have one
    "piano": _wave_table([1.0, 0.6, 0.4, 0.2, 0.1]),
    "guitar": _wave_table([1.0, 0.9, 0.9, 0.8, 0.7, 0.6, 0.6, 0.5, 0.4, 0.4, 0.3, 0.3]),
}
_ROOT = {"piano": 262.0, "flute": 523.0, "organ": 196.0, "guitar": 131.0}  # Hz; instruments also differ in register


def _lookup(table: Wave, phase: Wave) -> Wave:
    """phase (n,) in periods -> the table's values."""
    return table[(phase * np.float32(_TABLE)).astype(np.int32) & (_TABLE - 1)]


def _sine(phase: Wave) -> Wave:
    return np.sin(_TAU * phase)


def _noise(bank: Wave, n: int, rng: np.random.Generator) -> Wave:
    start = int(rng.integers(bank.size - n))
    return bank[start : start + n]


# Voices: time axis (n,) in seconds, duration in seconds, pitch factor near 1, generator -> wave (n,). No voice falls
# below about -14 dB before its end, so that offsets are audible.
def _bell(t: Wave, seconds: float, pitch: float, rng: np.random.Generator) -> Wave:
    f = np.float32(590 * pitch)
    partials = _sine(f * t) + np.float32(0.6) * _sine(f * np.float32(2.76) * t)
    partials += np.float32(0.4) * _sine(f * np.float32(5.4) * t)
    return partials * np.exp(t * np.float32(-1.5 / seconds)) * np.float32(0.5)


def _kick(t: Wave, seconds: float, pitch: float, rng: np.random.Generator) -> Wave:
    fall = np.exp(t * np.float32(-30.0))
    sweep = np.float32(60 * pitch) * t + np.float32(130 * pitch / 30) * (1 - fall)
    return _sine(sweep) * np.exp(t * np.float32(-1.2 / seconds))


def _snare(t: Wave, seconds: float, pitch: float, rng: np.random.Generator) -> Wave:
    wave = _noise(_WHITE, t.size, rng) + np.float32(0.4) * _sine(np.float32(190 * pitch) * t)
    return wave * np.exp(t * np.float32(-1.4 / seconds))


def _whistle(t: Wave, seconds: float, pitch: float, rng: np.random.Generator) -> Wave:
    return _sine(np.float32(1950 * pitch) * t + np.float32(0.9) * _sine(np.float32(5.5) * t))


def _siren(t: Wave, seconds: float, pitch: float, rng: np.random.Generator) -> Wave:
    rate, width = 3.0, 380.0 * pitch
    turn = np.float32(width / (2 * np.pi * rate)) * np.cos(_TAU * (np.float32(rate) * t + np.float32(rng.random())))
    phase = np.float32(880 * pitch) * t - turn
    return np.float32(0.8) * _sine(phase) + np.float32(0.2) * _sine(2 * phase)


def _buzzer(t: Wave, seconds: float, pitch: float, rng: np.random.Generator) -> Wave:
    return _lookup(_BUZZ, np.float32(125 * pitch) * t)


def _horn(t: Wave, seconds: float, pitch: float, rng: np.random.Generator) -> Wave:
    f = np.float32(345 * pitch)
    return np.float32(0.5) * (_lookup(_HORN, f * t) + _lookup(_HORN, f * np.float32(1.26) * t))


def _bird(t: Wave, seconds: float, pitch: float, rng: np.random.Generator) -> Wave:
    rate, width = 6.5, 650.0
    turn = np.float32(width / (2 * np.pi * rate)) * np.cos(_TAU * (np.float32(rate) * t + np.float32(rng.random())))
    return _sine(np.float32(2950 * pitch) * t - turn)


def _dog(t: Wave, seconds: float, pitch: float, rng: np.random.Generator) -> Wave:
    fall = np.float32(480 * pitch) * t - np.float32(110 * pitch / seconds) * t * t
    wave = _lookup(_BARK, fall) + np.float32(0.25) * _noise(_WHITE, t.size, rng)
    return wave * np.exp(t * np.float32(-0.9 / seconds))


def _hiss(t: Wave, seconds: float, pitch: float, rng: np.random.Generator) -> Wave:
    return _noise(_HIGH, t.size, rng)


def _laser(t: Wave, seconds: float, pitch: float, rng: np.random.Generator) -> Wave:
    """A tone that falls by three octaves, however long it lasts."""
    fall = np.float32(np.log(8) / seconds)
    phase = np.float32(2400 * pitch) / fall * (1 - np.exp(-fall * t))
    return np.float32(0.7) * _sine(phase) + np.float32(0.3) * _sine(np.float32(1.5) * phase)


_VOICES: dict[str, Callable[[Wave, float, float, np.random.Generator], Wave]] = {
    "bell": _bell,
    "kick": _kick,
    "snare": _snare,
    "whistle": _whistle,
    "siren": _siren,
    "buzzer": _buzzer,
    "horn": _horn,
    "bird": _bird,
    "dog": _dog,
    "hiss": _hiss,
    "laser": _laser,
}
_RISE = np.linspace(0, 1, 24, dtype=np.float32)  # 3 ms, avoids clicks
_FALL = np.linspace(1, 0, 64, dtype=np.float32)  # 8 ms


def _event_wave(event: SoundEvent, n: int, pitch: float, level: float, rng: np.random.Generator) -> Wave:
    t, seconds = _TIME[:n], n / SAMPLE_RATE
    wave = _VOICES[event.category](t, seconds, pitch, rng)
    # A little louder at the start, so that the onset of a steady sound shows in a spectrogram.
    wave = wave * (np.float32(0.7) + np.float32(0.3) * np.exp(t * np.float32(-12.0)))
    wave[: _RISE.size] *= _RISE
    wave[-_FALL.size :] *= _FALL
    wave *= np.float32(level)
    return wave


def _note_wave(note: Note, instrument: str, n: int, rng: np.random.Generator) -> Wave:
    t = _TIME[:n]
    phase = np.float32(_ROOT[instrument] * 2 ** (note.semitones / 12)) * t
    wave = _lookup(_DULL[instrument], phase)
    rise = _RISE
    if instrument in _BRIGHT:
        rate = 14.0 if instrument == "guitar" else 8.0
        attack = np.exp(t * np.float32(-rate))
        wave = wave + attack * (_lookup(_BRIGHT[instrument], phase) - wave)
        wave = wave * np.exp(t * np.float32(-rate / 3))
    elif instrument == "flute":
        wave = wave + np.float32(0.08) * _noise(_HIGH, n, rng)
        rise = np.linspace(0, 1, 240, dtype=np.float32)
    wave[: rise.size] *= rise[:n]
    wave[-_FALL.size :] *= _FALL
    wave *= np.float32(note.level)
    return wave


def render_audio(scene: Scene, preceding: bool = False) -> Wave:
    """Render mono sound (1, SAMPLES) at 8 kHz with a peak between 0.5 and 0.9: of a scene, or the clip that precedes a
    music scene."""
    rng = np.random.default_rng([scene.seed, 2 if preceding else 0])
    sound = np.zeros(SAMPLES, dtype=np.float32)
    if scene.domain == "audio":
        # Events of one category have the same pitch and level.
        things = {e.category: (rng.uniform(0.95, 1.05), rng.uniform(0.7, 1.0)) for e in scene.events}
        for event in scene.events:
            start, stop = (round(event.onset * SAMPLE_RATE), round(event.offset * SAMPLE_RATE))
            sound[start:stop] += _event_wave(event, stop - start, *things[event.category], rng)
    else:
        for note in scene_notes(scene, preceding):
            start, stop = (round(note.onset * SAMPLE_RATE), round(note.offset * SAMPLE_RATE))
            sound[start:stop] += _note_wave(note, scene.instrument, stop - start, rng)
    peak = max(float(sound.max()), -float(sound.min()), 1e-6)
    sound *= np.float32(rng.uniform(0.55, 0.85) / peak)
    floor = np.float32(rng.uniform(0.5e-3, 2e-3))
    offset = int(rng.integers(_WHITE.size - SAMPLES))
    sound += floor * _WHITE[offset : offset + SAMPLES]
    return sound[None]


def _disc(row: float, column: float, radius: float) -> Wave:
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    return np.clip(radius + 0.5 - np.hypot(y - row, x - column), 0, 1).astype(np.float32)


def _shapes() -> dict[str, Wave]:
    """The coverage (SIZE, SIZE) of each category's disc, on a grid with four columns, and each instrument's shape."""
    names = (*AUDIO_CATEGORIES, *EXTRA_CATEGORIES)
    discs = {name: _disc(2 + 4 * (i // 4), 2 + 4 * (i % 4), 1.8) for i, name in enumerate(names)}
    y, x = np.abs(np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2)
    ring = _disc(8, 8, 5.5) - _disc(8, 8, 3.0)
    outlines = (np.maximum(x, y) < 5, x + y < 6, ring, np.minimum(x, y) < 1.5)  # square, diamond, ring, cross
    return discs | {name: np.asarray(s, dtype=np.float32) for name, s in zip(INSTRUMENTS, outlines, strict=True)}


_PALETTE = (
    (255, 215, 0), (230, 60, 60), (240, 240, 240), (80, 200, 255), (60, 90, 255),
    (255, 130, 30), (200, 60, 220), (70, 220, 80), (170, 120, 70), (150, 255, 230), (255, 60, 150),
    (255, 255, 255), (110, 200, 255), (190, 110, 255), (255, 170, 80),
)  # fmt: skip
# Coverage times colour, (SIZE, SIZE, 3): a fully lit event adds this to a frame.
_PICTURES: dict[str, Wave] = {
    name: shape[..., None] * np.array(colour, dtype=np.float32)
    for (name, shape), colour in zip(_shapes().items(), _PALETTE, strict=True)
}
_FRAME_TIMES: NDArray[np.float64] = (np.arange(FRAMES, dtype=np.float64) + 0.5) / FRAME_RATE


def render_video(scene: Scene) -> NDArray[np.uint8]:
    """Render frames (FRAMES, SIZE, SIZE, 3) in RGB; frame i shows the time (i + 0.5)/FRAME_RATE seconds.

    An event is a disc in the colour and place of its category, brightest at its onset, visible until its offset. Music
    shows the shape of the instrument, which flashes on each beat.
    """
    rng = np.random.default_rng([scene.seed, 1])
    frames = np.empty((FRAMES, SIZE, SIZE, 3), dtype=np.float32)
    frames[:] = rng.uniform(5, 25, 3).astype(np.float32) + rng.uniform(0, 8, (SIZE, SIZE, 1)).astype(np.float32)
    if scene.domain == "audio":
        for event in scene.events:
            shown = slice(*np.searchsorted(_FRAME_TIMES, (event.onset, event.offset)))
            light = 0.5 + 0.5 * np.exp((event.onset - _FRAME_TIMES[shown]) / 0.15)
            frames[shown] += light.astype(np.float32)[:, None, None, None] * _PICTURES[event.category]
    else:
        beats = np.array([note.onset for note in scene_notes(scene) if note.on_beat])
        last = np.searchsorted(beats, _FRAME_TIMES, side="right") - 1
        age = np.where(last >= 0, _FRAME_TIMES - beats[last], np.inf)
        light = 0.25 + 0.7 * np.exp(-age / 0.08)
        frames += light.astype(np.float32)[:, None, None, None] * _PICTURES[scene.instrument]
    return np.minimum(frames, 255, out=frames).astype(np.uint8)
