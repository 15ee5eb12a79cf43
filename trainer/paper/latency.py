"""Latency by the paper's protocol of any weights, or of a configuration with random ones (section VI-B, Table II)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...kernels.ops import KernelsConfig
from ...models.audiox import SamplingConfig
from ...models.encoders.random_weights import random_codec, random_text_encoder
from ...models.encoders.runtime import Runtime
from ...models.networks import build_network
from ...models.sampler import override_sampling
from ..core.config import PretrainConfig
from ..core.hardware import choose_device
from ..evaluation.latency import RUNS, TEXT, WARM_UPS, TimedModel, efficiency_rows
from ..evaluation.report import efficiency_table
from ..generation.generator import Generator
from ..pages.tables import as_text

STEPS = (4, 50, 100, 200)  # of Table II
GUIDANCE = 3.0  # of random weights: any that needs two evaluations a step
STUDENT = SamplingConfig("renoise", steps=4, guidance=1.0)


def measure(
    config: PretrainConfig | None,
    name: str,
    weights: Sequence[str],
    steps: Sequence[int],
    guidance: float | None,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Latencies end to end and by part, with NFE and RTF, of each of `weights` at each of `steps` (none: its own); or
    of random weights of `config`, as a teacher at `steps` and as a student at 4, under the name `name`.

    Raises ValueError where weights are none, or random ones cannot have the configured sizes.
    """
    models = _of_weights(weights, steps, guidance, dtype) if config is None else []
    if config is not None:
        generator = random_generator(config, dtype)
        models = [
            (name, generator, SamplingConfig(steps=n, guidance=GUIDANCE if guidance is None else guidance))
            for n in steps or STEPS
        ]
        models.append((f"{name} student", generator, STUDENT))
    seconds = {model[1].model.config.codec.seconds for model in models}
    return {
        "protocol": {"batch": 1, "warm_ups": WARM_UPS, "runs": RUNS, "text": TEXT, "seconds": sorted(seconds)},
        "weights": "random" if config is not None else list(weights),
        "dtype": str(dtype).removeprefix("torch."),
        "kernels": models[0][1].kernels.names,
        "efficiency": efficiency_rows(models),
    }


def _of_weights(
    weights: Sequence[str], steps: Sequence[int], guidance: float | None, dtype: torch.dtype
) -> list[TimedModel]:
    models: list[TimedModel] = []
    for location in weights:
        generator = Generator(location, dtype=dtype)
        name = Path(location).resolve().name
        if any(name == other for other, *_ in models):
            raise ValueError(f"--weights: two are called {name}; rename a folder, so that rows differ")
        for n in steps or (generator.sampling.steps,):
            models.append((name, generator, override_sampling(generator.sampling, n, guidance)))
    return models


def random_generator(config: PretrainConfig, dtype: torch.dtype = torch.float32) -> Generator:
    """A generator of the configured sizes that reads no weights. Raises ValueError as `random_codec`, and where
    `kernels` asks for what cannot run here."""
    device, model = choose_device(None), config.model
    runtime = Runtime.for_device(device)
    torch.manual_seed(0)
    with device:
        network = build_network(model).requires_grad_(False)
    for parameter in network.parameters():  # weights that start at zero would hide the layers before them
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    encoders = random_text_encoder(model.text, runtime), random_codec(model.codec, runtime)
    return Generator.from_networks(network, *encoders, runtime, dtype, config.kernels or KernelsConfig())


def summary_lines(result: dict[str, Any]) -> list[str]:
    lengths = ", ".join(f"{seconds:.2f} s" for seconds in result["protocol"]["seconds"])
    return [
        f"one clip of {lengths}, {result['dtype']}, as a user gets it but for CUDA graphs",
        as_text(efficiency_table(result)),
    ]
