"""Sound for an evaluation: many clips of one request, a batch at a time.

B clips, L latent frames, C latent channels.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ...models.audiox import SamplingConfig
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
