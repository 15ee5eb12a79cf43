"""Sound of any length from a weights folder: what `launch/generate.py` and Python users call."""

from pathlib import Path
from typing import Any

from torch import Tensor

from .clip_generator import ClipGenerator
from .long_form import make
from .prompts import prompt_of


class Generator(ClipGenerator):
    """A set of weights with its encoders and codec, ready to make sound.

    >>> generator = Generator("weights/tiny")
    >>> wave = generator.make(text="a bell, then two kicks", seed=0)  # (channels, samples) float32
    >>> wave = generator.make(video="clip.mp4", steps=25)
    >>> write("clip_with_sound.mp4", wave, generator.sample_rate, video="clip.mp4")  # of trainer/media/mux.py
    """

    def make(self, **prompt: Any) -> Tensor:
        """One sound (audio_channels, samples) float32 in [-1, 1], on the CPU; the keys are those of `Prompt`.

        Raises ValueError where the prompt cannot be met: a file is missing or damaged, or the fields contradict.
        """
        keys = {name: str(value) if isinstance(value, Path) else value for name, value in prompt.items()}
        (sound,) = make(self, [prompt_of(keys, Path())])
        if isinstance(sound, ValueError):
            raise sound
        return sound.wave
