"""What a training needs of every node: the memory and the room that a plan reckons with, and a share of its speeds."""

import os
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from ..checkpoint import load
from ..core.config import BaseConfig
from ..core.gpu_specs import find_gpu
from ..cost.plan import Arrangement, arranged, workload
from ..cost.plan_time import Cluster
from ..resilience.preflight import Wanted

MEMORY = 0.9  # of a plan's, which is within a tenth of what a run measures
SPEED = 0.25  # of a plan's: links under load reach more; one that is broken or passed by does not


def from_config(wanted: Wanted, config: BaseConfig, given: Collection[str]) -> Wanted:
    """`wanted` with what a training with this configuration needs, but for what is `given`: room for its next
    checkpoint beside those that are kept, and on GPUs their memory and the speed of an all-reduce.

    Every rank calls this, in the environment that torchrun and Slurm's scripts set.
    """
    try:
        work = workload(config)
    except ValueError:  # optimizer states in host memory, which the arithmetic does not cover
        return wanted
    ranks, each = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    missing = max(0, config.checkpoint.keep_last - len(load.complete(wanted.output)))
    needs = {"disk": sum(role.saved() for role in work.roles) * (1 + missing) / 1e9}
    if torch.cuda.is_available():
        training = work.training
        layout = Arrangement(
            ranks, None, training.micro_batch, training.global_batch, training.activation_checkpointing
        )
        needs["memory"] = MEMORY * arranged(work, layout).total / 1e9
        gpu = find_gpu(torch.cuda.get_device_name())
        if gpu is not None:
            needs["bandwidth"] = SPEED * Cluster(gpu, ranks, each).speed / 1e9
    rest: dict[str, Any] = {name: float(f"{need:.3g}") for name, need in needs.items() if name not in given}
    return replace(wanted, **rest)
