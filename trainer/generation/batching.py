"""Many clips of one request, in batches and on several CPU cores.

B clips, L latent frames, C latent channels.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ...models.audiox import SamplingConfig
from .clip_request import ClipRequest

A = TypeVar("A")
BATCH = 50
SEED_STRIDE = 1_000_000  # between the noise seeds of two evaluations: more than the clips of any


class SoundModel(Protocol):
    """A `Generator`, or in tests a stand-in whose answers are known."""

    def latents(self, request: ClipRequest, seed: int, sampling: SamplingConfig | None = None) -> Tensor:
        """(B, L, C); sample i of the request draws its noise from seed + i."""
        ...

    def waves(self, latents: Tensor) -> Tensor:
        """latents (B, L, C) -> waves (B, audio_channels, L·hop)."""
        ...


def sample_latents(
    model: SoundModel, request: ClipRequest, seed: int, sampling: SamplingConfig, progress: tqdm
) -> Tensor:
    """Latents (B, L, C) of a request of any size, the same as in one batch; `progress` advances by B."""

    def sample(start: int) -> Tensor:
        return model.latents(request.rows(slice(start, start + BATCH)), seed + start, sampling)

    starts, batches = range(0, len(request.texts), BATCH), []
    for latents in parallel_map(sample, starts, workers=1 if torch.cuda.is_available() else None):
        batches.append(latents)
        progress.update(len(latents))
    return torch.cat(batches)


def decode_latents(model: SoundModel, latents: Tensor) -> Tensor:
    """latents (B, L, C) of any number of clips -> waves (B, audio_channels, L·hop)."""
    return torch.cat(list(parallel_map(model.waves, latents.split(BATCH))))


def parallel_map(
    function: Callable[[A], Tensor], items: Sequence[A], workers: int | None = None, threads_each: int | None = None
) -> Iterator[Tensor]:
    """function(item) of each item, in order.

    On a CPU every core works on its own item: on small tensors, two cores that share an item wait for each other
    more than they work. `threads_each` fixes the threads per item, however many items there are; by default the workers
    share all threads.
    """
    threads = torch.get_num_threads()
    workers = min(threads if workers is None else workers, len(items))
    if workers < 2 and threads_each in (None, threads):
        yield from map(function, items)
        return
    # torch counts the threads of an operation per calling thread.
    share = (threads_each or max(1, threads // workers),)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=share) as pool:
        yield from pool.map(function, items)
