"""A run's folder: refused where it holds another run, resumed where that is asked for.

RUN/config.json   RUN/metrics.jsonl   RUN/tensorboard/   RUN/checkpoints/
"""

import os
from pathlib import Path
from typing import Any

from ..models import strict
from . import checkpoint
from .config import BaseConfig, check_ranks, read_json
from .data.reader import check_streams
from .files import write_json
from .fp8 import check_fp8

# What may not change between a checkpoint and the run that goes on from it: the model, and what settles which samples a
# step takes.
FIXED = (
    "model",
    "data.streams",
    "data.canonical_nodes",
    "training.seed",
    "training.global_batch",
    "updates",  # of a distillation
    "warm_start.updates",
    "warm_start.pairs",
)


def check(config: BaseConfig, output: Path, resume: bool) -> None:
    """All that can be wrong with ranks, folder and shards, before a process group is made. Raises ValueError."""
    check_ranks(config.training, int(os.environ.get("WORLD_SIZE", "1")))
    if config.training.fp8:
        check_fp8()
    check_output(output, resume)
    check_unchanged(output, config)
    check_streams(config, hashes=False)


def check_output(folder: Path, resume: bool) -> None:
    """Raises ValueError where the folder holds a run and `resume` is not set. Nothing is written."""
    if not resume and ((folder / "config.json").exists() or checkpoint.complete(folder)):
        raise ValueError(f"{folder} holds a run already: give --resume to go on with it, or another --output")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give another --output")


def check_unchanged(folder: Path, config: BaseConfig) -> None:
    """Raises ValueError when something of `FIXED` differs from the run in the folder; names it with both values."""
    if not (folder / "config.json").exists():
        return
    before, now = read_json(folder / "config.json"), strict.to_dict(config)
    for path in FIXED:
        old, new = _at(before, path), _at(now, path)
        if old != new:
            where, a, b = difference(path, old, new)
            raise ValueError(
                f"{where}: the run in {folder} has {a!r}, this configuration {b!r}; go on with the former, or start a "
                f"new run in another --output"
            )


def write_config(folder: Path, config: BaseConfig) -> None:
    write_json(folder / "config.json", strict.to_dict(config))


def _at(data: Any, path: str) -> Any:
    for key in path.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return data


def difference(path: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """The first place under `path` where two JSON values differ, and what stands there."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return difference(f"{path}.{key}", old.get(key), new.get(key))
    return path, old, new
