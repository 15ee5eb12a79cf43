"""A run's folder: refused where it holds another run, resumed where that is asked for.

RUN/config.json   RUN/shards.json   RUN/latest.json   RUN/metrics.jsonl   RUN/tensorboard/   RUN/checkpoints/
"""

import os
from pathlib import Path
from typing import Any

from ..models import strict
from ..models.encoders.build import check_text_encoder
from . import checkpoint
from .config import BaseConfig, check_ranks, read_json
from .data.cached import folder_of
from .data.reader import check_streams
from .files import hash_file, write_json
from .fp8 import check_fp8

SHARDS = "shards.json"
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
    """All that can be wrong with ranks, folder, shards and text encoder, before a process group is made.

    Raises ValueError.
    """
    check_ranks(config.training, int(os.environ.get("WORLD_SIZE", "1")))
    if config.training.fp8:
        check_fp8()
    check_output(output, resume)
    check_unchanged(output, config)
    check_streams(config, hashes=False)
    check_text_encoder(config.model.text)


def check_output(folder: Path, resume: bool) -> None:
    """Raises ValueError where the folder holds a run and `resume` is not set. Nothing is written."""
    if not resume and ((folder / "config.json").exists() or checkpoint.complete(folder)):
        raise ValueError(f"{folder} holds a run already: give --resume to go on with it, or another --output")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give another --output")


def check_unchanged(folder: Path, config: BaseConfig) -> None:
    """Raises ValueError when something of `FIXED`, or a shard, differs from the run in the folder; names it with both
    values. `data.accept_changes` lets streams and shards pass."""
    if not (folder / "config.json").exists():
        return
    before, now = read_json(folder / "config.json"), strict.to_dict(config)
    accepted = config.data.accept_changes
    if (folder / SHARDS).exists() and not accepted:
        indexes = read_json(folder / SHARDS)
        for path, index in _indexes(config).items():
            if indexes.get(path, index) != index:
                raise ValueError(
                    f"{path}: its shards are not those that the run in {folder} was trained on (another index.json); "
                    f"bring them back, or go on with these by --set data.accept_changes=true"
                )
    for path in FIXED:
        if accepted and path == "data.streams":
            continue
        old, new = _at(before, path), _at(now, path)
        if path == "model":
            old, new = without_places(old), without_places(new)
        if old != new:
            where, a, b = strict.difference(path, old, new)
            raise ValueError(
                f"{where}: the run in {folder} has {a!r}, this configuration {b!r}; go on with the former, or start a "
                f"new run in another --output"
            )


def write_config(folder: Path, config: BaseConfig) -> None:
    write_json(folder / "config.json", strict.to_dict(config))
    write_json(folder / SHARDS, _indexes(config))


def _indexes(config: BaseConfig) -> dict[str, str]:
    """The hash of each stream's index, which holds those of its shards."""
    data = config.data
    files = {stream.path: folder_of(stream.path, data.cache) / "index.json" for stream in data.streams}
    return {path: hash_file(file) for path, file in files.items() if file.is_file()}


def _at(data: Any, path: str) -> Any:
    for key in path.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return data


def without_places(model: dict[str, Any]) -> dict[str, Any]:
    """A model's JSON without the folders of its frozen encoders: where weights lie does not change what they are."""
    return {name: {k: v for k, v in part.items() if not k.endswith("weights")} for name, part in model.items()}
