"""How long one clip takes from text to wave (section VI-B, Table II): batch 1, five warm-ups, twenty runs."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..models.audiox import SamplingConfig
from .generator import Generator
from .making import nfe
from .request import Request

WARM_UPS, RUNS = 5, 20
TEXT = "a bell, then two kicks"
Way = tuple[str, Generator, SamplingConfig]  # a model's name, its weights, how it is sampled


def efficiency_rows(ways: Sequence[Way]) -> list[dict[str, Any]]:
    """Latency of each way in seconds end to end, mean and standard deviation, and over the clip's length (RTF); of it
    `transformer_s_mean` goes into the latents, text encoder included, and the rest into the codec.

    The ways take turns, so that what else a machine does meets all of them alike.
    """
    seconds = np.empty((len(ways), WARM_UPS + RUNS, 2))
    for run in tqdm(range(WARM_UPS + RUNS), desc="latency", disable=not ways):
        for way, (_, generator, sampling) in enumerate(ways):
            seconds[way, run] = _one(generator, run, sampling)
    return [_row(way, measured[WARM_UPS:]) for way, measured in zip(ways, seconds, strict=True)]


def _one(generator: Generator, seed: int, sampling: SamplingConfig) -> tuple[float, float]:
    """Seconds of the latents, and of all."""
    begin = time.perf_counter()
    latents = generator.latents(Request([TEXT]), seed, sampling)  # on the CPU, so the device has finished
    middle = time.perf_counter()
    generator.waves(latents)
    return middle - begin, time.perf_counter() - begin


def _row(way: Way, seconds: NDArray[np.float64]) -> dict[str, Any]:
    model, generator, sampling = way
    latents, whole = seconds.T
    return {
        "model": model,
        "device": generator.device.type,
        "threads": torch.get_num_threads(),
        "steps": sampling.steps,
        "nfe": nfe(sampling),
        "latency_s_mean": float(whole.mean()),
        "latency_s_std": float(whole.std(ddof=1)),
        "transformer_s_mean": float(latents.mean()),
        "rtf": float(whole.mean() / generator.model.config.codec.seconds),
    }
