"""Sound for an evaluation: many clips of one request, a batch at a time.

B clips, L latent frames, C latent channels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ..models.audiox import Kind, SamplingConfig
from .request import Request

A = TypeVar("A")
BATCH = 50
SEED_STRIDE = 1_000_000  # between the noise seeds of two evaluations: more than the clips of any


class Maker(Protocol):
    """What is evaluated: a `Generator`, or a stand-in whose answers are known."""

    def latents(self, request: Request, seed: int, sampling: SamplingConfig | None = None) -> Tensor:
        """(B, L, C); sample i of the request draws its noise from seed + i."""
        ...

    def waves(self, latents: Tensor) -> Tensor:
        """latents (B, L, C) -> (B, audio_channels, L·hop)."""
        ...


def make(maker: Maker, request: Request, seed: int, sampling: SamplingConfig, bar: tqdm) -> Tensor:
    """Latents (B, L, C) of a request of any size, the same as in one batch; `bar` advances by B."""
    starts = range(0, len(request.texts), BATCH)

    def latents(start: int) -> Tensor:
        return maker.latents(request.part(slice(start, start + BATCH)), seed + start, sampling)

    parts = []
    for part in side_by_side(latents, starts, workers=1 if torch.cuda.is_available() else None):
        parts.append(part)
        bar.update(len(part))
    return torch.cat(parts)


def sound(maker: Maker, latents: Tensor) -> Tensor:
    """latents (B, L, C) of any number of clips -> waves (B, audio_channels, L·hop)."""
    return torch.cat(list(side_by_side(maker.waves, latents.split(BATCH))))


def side_by_side(
    function: Callable[[A], Tensor], parts: Sequence[A], workers: int | None = None, each: int | None = None
) -> Iterator[Tensor]:
    """function(part) of each part, in order. On a CPU every core works on a part of its own: on small tensors two
    cores on one part wait for each other more than they work. A part is computed by `each` threads, however many parts
    there are; without it, by its share of all."""
    threads = torch.get_num_threads()
    workers = min(threads if workers is None else workers, len(parts))
    if workers < 2 and each in (None, threads):
        yield from map(function, parts)
        return
    # torch counts the threads of an operation per calling thread.
    share = (each or max(1, threads // workers),)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=share) as pool:
        yield from pool.map(function, parts)


def changed(
    sampling: SamplingConfig, steps: int | None, guidance: float | None, kind: Kind | None = None
) -> SamplingConfig:
    """The weights' own sampling with what a user asks for in its place.

    Raises:
        ValueError: there is no step, or the guidance is negative or not finite.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps: {steps}; a sampler takes at least 1")
    if guidance is not None and not 0 <= guidance < math.inf:
        raise ValueError(f"guidance: {guidance} must be 0 or more; 1 is none, {sampling.guidance:g} the weights' own")
    return replace(
        sampling,
        kind=kind or sampling.kind,
        steps=sampling.steps if steps is None else steps,
        times=sampling.times if steps in (None, sampling.steps) else (),
        guidance=sampling.guidance if guidance is None else guidance,
    )


def nfe(sampling: SamplingConfig) -> int:
    """Function evaluations a clip (section VI-B): guidance evaluates every step twice."""
    return sampling.steps * (1 if sampling.guidance == 1 else 2)
