"""A training run on random batches: the beginning that all benchmarks of training share."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from ..core.config import BaseConfig, LoggingConfig, PretrainConfig
from ..core.distill_config import DistillConfig
from ..data.batches import Batch, Conditions
from ..engine import kernel_selection
from ..engine.fp8 import check_fp8
from ..engine.kernel_selection import KernelSelection
from ..engine.process_group import World, init_process_group

C = TypeVar("C", bound=BaseConfig)


def start_run(config: C) -> tuple[C, World, KernelSelection]:
    """The configuration without encoders, the ranks, and the operations that its `kernels` select.

    Raises ValueError if the configuration asks for what cannot run here.
    """
    assert isinstance(config, (PretrainConfig, DistillConfig))
    precision = config.training.precision if isinstance(config, PretrainConfig) else config.precision
    kernel_selection.check_kernels(config.kernels, precision, config.model)
    check_fp8(config.training)
    config = without_encoders(config)
    world = init_process_group(config.training.cpu_threads)
    return config, world, kernel_selection.select_for_run(config, world, precision)


def without_encoders(config: C) -> C:
    """The same model, for features that no encoder or codec made: none is loaded."""
    text = replace(config.model.text, kind="words")
    return replace(config, model=replace(config.model, text=text), logging=LoggingConfig())


def random_batch(config: BaseConfig, samples: int = 0) -> Batch:
    """A batch of the configured shapes and size (or of so many samples), full texts, numbers from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    model, n = config.model, samples or config.training.global_batch
    text = model.text
    shapes = (
        (n, model.codec.frames, model.codec.latent_channels),
        (n, model.video_rows, model.video_dim),
        (n, model.codec.frames, model.codec.latent_channels),
        (n, text.max_tokens, text.dim),
    )
    latents, video, audio, words = (torch.randn(s, generator=generator) for s in shapes)
    length = torch.randint(1, text.max_tokens + 1, (n,), generator=generator)
    names = tuple(str(i) for i in range(n))
    nothing = torch.zeros(n, model.codec.frames)
    return Batch(latents, Conditions(video, audio, words, length), nothing, torch.arange(n), ("T2A",) * n, names)


def share_of_rank(batch: Batch, world: World) -> Batch:
    return batch.split(len(batch) // world.ranks)[world.rank]


@contextlib.contextmanager
def shared_folder(inside: Path | None, prefix: str) -> Iterator[Path]:
    """A temporary folder, the same on all ranks. It is deleted when all have left it."""
    with contextlib.ExitStack() as stack:
        path = [""]
        if torch.distributed.get_rank() == 0:
            path = [stack.enter_context(tempfile.TemporaryDirectory(dir=inside, prefix=prefix))]
        torch.distributed.broadcast_object_list(path)
        yield Path(path[0])
        torch.distributed.barrier()
