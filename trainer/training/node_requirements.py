"""The requirements of a training run on every node: memory and disk space by its plan, and a share of the planned
speed."""

import os
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from ..checkpoint import load
from ..core.config import BaseConfig
from ..core.gpu_specs import find_gpu
from ..cost.planned_memory import configured_layout, planned_memory
from ..cost.planned_time import Cluster
from ..cost.workload import workload
from ..resilience.preflight import NodeRequirements

MEMORY_SHARE = 0.9  # of a plan's, which is within a tenth of what a run measures
SPEED_SHARE = 0.25  # of a plan's: working links reach more under load, a broken one does not


def from_config(requested: NodeRequirements, config: BaseConfig, given: Collection[str]) -> NodeRequirements:
    """`requested`, plus what a run with this configuration needs unless it is `given`: disk space for the next
    checkpoint in addition to those that are kept, and on GPUs their memory and the speed of an all-reduce.

    Every rank calls this, in the environment that torchrun and Slurm's scripts set.
    """
    try:
        work = workload(config)
    except ValueError:  # optimizer states in host memory, which the arithmetic does not cover
        return requested
    ranks, each = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    missing = max(0, config.checkpoint.keep_last - len(load.list_checkpoints(requested.output)))
    needs = {"disk": sum(role.checkpoint_bytes() for role in work.roles) * (1 + missing) / 1e9}
    if torch.cuda.is_available():
        needs["memory"] = MEMORY_SHARE * planned_memory(work, configured_layout(work, ranks)).total / 1e9
        gpu = find_gpu(torch.cuda.get_device_name())
        if gpu is not None:
            needs["bandwidth"] = SPEED_SHARE * Cluster(gpu, ranks, each).speed / 1e9
    rest: dict[str, Any] = {name: float(f"{need:.3g}") for name, need in needs.items() if name not in given}
    return replace(requested, **rest)
