"""A run's folder: what may change when a run resumes, and the lock against a second run.

RUN/config.json   RUN/shards.json   RUN/latest.json   RUN/metrics.jsonl   RUN/tensorboard/   RUN/checkpoints/
RUN/init.json names the weights that the run began from, if it did.
RUN/rolled_back/ has the checkpoints after one that the run went back to.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from xxhash import xxh3_128

from ...models import strict
from ...models.config import without_weight_paths
from ...models.encoders.build import check_text_encoder
from ..checkpoint import load, rollback
from ..core.cli import ExitCode
from ..core.config import BaseConfig, check_ranks
from ..core.config_reader import read_json
from ..core.distill_config import DistillConfig
from ..core.files import hash_file, make_folder, write_json
from ..data.bucket_cache import cache_folder
from ..data.reader import check_no_pairs, check_streams
from ..engine.fp8 import check_fp8
from .logs import last_step

SHARDS = "shards.json"
INIT = "init.json"
LOCK = ".lock"
# Seconds. Processes of a killed run may need a moment to end, and a file server 90 s to give up on a node.
LOCK_TIMEOUT = 100.0
WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # file systems such as Lustre mounted without "flock"
# May not change when a run resumes: the model, and whatever decides which samples a step takes, what is drawn for them,
# and which phase of a distillation it is. Everything else may change, and is printed.
FIXED = (
    "model",
    "init.weights",
    "init.skip",
    "lora",
    "data.streams",
    "data.canonical_nodes",
    "data.dropout",
    "data.inpainting_hole",
    "data.completion_prefix",
    "training.seed",
    "training.global_batch",
    "training.timestep_sampling",
    "training.timestep_logit_mean",
    "training.timestep_uniform_share",
    "student.lora",  # of a distillation, like all below
    "fake.lora",
    "updates",
    "warm_start.updates",
    "warm_start.pairs",
    "warm_start.step_probabilities",
    "distillation.step_probabilities",
    "distillation.fake_step_probabilities",
    "distillation.discriminator_step_probabilities",
    "distillation.noise_levels",
    "distillation.guidance_noise_levels",
    "distillation.discriminator_noise_levels",
)
ACCEPTED = (
    "data.streams",
    "data.dropout",
    "data.inpainting_hole",
    "data.completion_prefix",
)  # may change with data.accept_changed_data
# Above 0 the discriminator or the fake model has turns, which make a round longer.
TURNS = ("distillation.adversarial_weight", "distillation.matching_weight")


def check_start(config: BaseConfig, output: Path, resume: bool, from_step: int | None = None) -> None:
    """Checks ranks, folder, shards and text encoder before there is a process group. Raises ValueError."""
    check_ranks(config.training, int(os.environ.get("WORLD_SIZE", "1")))
    check_fp8(config.training)
    check_output(output, resume)
    if from_step is not None:
        if not resume:
            raise ValueError(f"--from {from_step} continues a run: give --resume too")
        rollback.check_has_step(output, from_step)
    changes = check_unchanged(output, config, from_step)
    check_same_shards(output, config, from_step)
    check_no_pairs(config)
    check_streams(config, hashes=False)
    check_same_shards(output, config, from_step)  # the index of a stream in a bucket is here only now
    check_text_encoder(config.model.text)
    if changes and os.environ.get("RANK", "0") == "0":
        print("\n".join([f"{output} resumes with another configuration:", *changes]), flush=True)


def check_output(folder: Path, resume: bool) -> None:
    """Raises ValueError if the folder holds a run and `resume` is not set. Writes nothing."""
    if not resume and ((folder / "config.json").exists() or load.list_checkpoints(folder)):
        raise ValueError(f"{folder} holds a run already: give --resume to continue it, or another --output")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give another --output")


class RunFolderLockedError(ValueError):
    """Another run has locked the folder, or a node that died still holds the lock."""

    exit_code = ExitCode.HUNG  # it may go well another time


@contextlib.contextmanager
def lock(folder: Path, resume: bool, rank: int) -> Iterator[None]:
    """Rank 0 locks the folder against other runs: two runs in one folder would remove each other's checkpoints.

    Raises RunFolderLockedError if another run uses it, ValueError if another run has used it since `check_output`.
    """
    if rank != 0:
        yield
        return
    make_folder(folder)
    file_lock = FileLock(folder / LOCK, fallback_to_soft=False)  # a soft lock outlives a killed run
    try:
        with contextlib.suppress(Timeout):
            file_lock.acquire(timeout=min(1.0, LOCK_TIMEOUT))
        if not file_lock.is_locked:
            print(f"another run holds {folder / LOCK}: waiting up to {LOCK_TIMEOUT:g} s for it to end", flush=True)
            file_lock.acquire(timeout=LOCK_TIMEOUT)
    except Timeout:
        raise RunFolderLockedError(
            f"another run uses {folder} (it holds {folder / LOCK}): stop it, or give another --output"
        ) from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        print(f"{folder}: its file system has no locks, so nothing prevents a second run in it", flush=True)
    try:
        check_output(folder, resume)
        yield
    finally:
        file_lock.release()


def check_unchanged(folder: Path, config: BaseConfig, from_step: int | None = None) -> list[str]:
    """The differences from the configuration of the run in the folder, a line for each value.

    Compares with the configuration in the newest checkpoint, or that of `from_step`, or with `config.json` if there is
    none. Raises ValueError
    with both values if one of `FIXED` differs; `data.accept_changed_data` allows `ACCEPTED`.
    """
    before, now = _previous_config(folder, from_step), strict.to_dict(config)
    if before is None:
        return []
    for path in FIXED:
        if config.data.accept_changed_data and path in ACCEPTED:
            continue
        old, new = _at(before, path), _at(now, path)
        if path == "model":
            old, new = without_weight_paths(old), without_weight_paths(new)
        if found := strict.changes(path, old, new):
            raise ValueError(_refusal(folder, *found[0]))
    for path in TURNS:
        old, new = _at(before, path), _at(now, path)
        if bool(old) != bool(new):
            raise ValueError(_refusal(folder, path, old, new))
    return [f"  {where}: {a!r} before, {b!r} now" for where, a, b in strict.differences("", before, now)]


def check_same_shards(folder: Path, config: BaseConfig, from_step: int | None = None) -> None:
    """Raises ValueError if the shards of a stream, or the pairs of an unfinished warm start, are not those that the run
    in the folder was trained on, unless `data.accept_changed_data` allows it."""
    manifest = load.newest_manifest(folder, from_step) or {}
    before = manifest.get("shards")
    if before is None:
        before = read_json(folder / SHARDS) if (folder / SHARDS).exists() else {}
    if config.data.accept_changed_data:
        return
    for path, index in indexes(config, manifest.get("step", 0)).items():
        if before.get(path, index) != index:
            raise ValueError(
                f"{path}: its shards are not those that the run in {folder} was trained on (another index.json); "
                f"restore them, or continue with these by --set data.accept_changed_data=true"
            )


def check_no_checkpoint_lost(folder: Path, saved: int) -> None:
    """Raises NoUsableCheckpointError in a folder without checkpoints whose metrics go beyond step `saved`, which no run
    reaches before its first checkpoint is there."""
    last = last_step(folder)
    if last > saved:
        raise load.NoUsableCheckpointError(
            f"{folder}: its metrics reach step {last}, and before step {saved + 1} there was a checkpoint, which is "
            f"gone; restore {folder / load.FOLDER}, or start again in another --output"
        )


def save_settings(folder: Path, config: BaseConfig) -> tuple[int, bool]:
    """`checkpoint.every` and `async_save` of the last start of the run in the folder; if unknown, those of `config`."""
    try:
        before = read_json(folder / "config.json")["checkpoint"]
        return int(before["every"]), bool(before["async_save"])
    except (OSError, ValueError, KeyError, TypeError):
        return config.checkpoint.every, config.checkpoint.async_save


def write_config(folder: Path, config: BaseConfig, init: dict[str, Any] | None = None) -> None:
    """`init` says which weights the run began from."""
    write_json(folder / "config.json", strict.to_dict(config))
    if init:
        write_json(folder / INIT, init)
    write_json(folder / SHARDS, indexes(config))


def indexes(config: BaseConfig, step: int = 0) -> dict[str, str]:
    """The hash of each stream's index, which contains those of its shards, and one of all indexes of the pairs if steps
    from `step` on use them."""
    data = config.data
    files = {stream.path: cache_folder(stream.path, data.cache) / "index.json" for stream in data.streams}
    hashes = {path: hash_file(file) for path, file in files.items() if file.is_file()}
    if isinstance(config, DistillConfig) and step < config.paired_updates:
        pairs = Path(config.warm_start.pairs)
        parts = [hash_file(file) for file in sorted(pairs.glob("part_*/index.json"))]
        hashes |= {str(pairs): xxh3_128(" ".join(parts)).hexdigest()} if parts else {}
    return hashes


def _previous_config(folder: Path, from_step: int | None) -> dict[str, Any] | None:
    """The configuration of the run in a folder: the one in its newest checkpoint, whose manifest has a hash."""
    hashed: dict[str, Any] | None = (load.newest_manifest(folder, from_step) or {}).get("config")
    if hashed is None and (folder / "config.json").exists():
        return read_json(folder / "config.json")
    return hashed


def _refusal(folder: Path, where: str, old: Any, new: Any) -> str:
    return (
        f"{where}: the run in {folder} has {old!r}, this configuration {new!r}; keep the former, or start a new run in "
        f"another --output"
    )


def _at(data: Any, path: str) -> Any:
    for key in path.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return data
