"""Sounds of prompts from the small model."""

from pathlib import Path

from audiox_trainer.trainer.generation.generator import Generator
from audiox_trainer.trainer.generation.long_form import LongSound
from audiox_trainer.trainer.generation.prompts import Prompt

CLIP = 16_384  # samples of the small model's clip, 2.048 s at 8 kHz: 8 latent frames, of which 2 overlap


def prompt(**keys) -> Prompt:
    return Prompt(**{k: str(v) if isinstance(v, Path) else v for k, v in keys.items()})


def sound(generator: Generator, **keys) -> LongSound:
    (result,) = generator.generate_sounds([prompt(**keys)])
    if isinstance(result, ValueError):
        raise result
    return result
