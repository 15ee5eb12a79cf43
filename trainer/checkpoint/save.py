"""Saving checkpoints, all roles together, while training waits or in the background.

Until a checkpoint is complete its folder ends in `.partial`. It does not count, whenever a rank dies, and the next
save removes it.
"""

import contextlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from ..core.files import make_folder, move_into_place, sync
from ..core.integrity import file_entry, write_manifest
from ..cost.role_bytes import readable
from .fragment_files import CONSTANT
from .load import TrainedModel, best_checkpoint, list_checkpoints, on_all_ranks, step_folder, step_of, write_latest
from .rollback import HEALTHY, is_healthy

Entries = dict[str, dict[str, Any]]  # a manifest's entries of files, by name
T = TypeVar("T")


class NotFiniteError(FloatingPointError):
    """The state has values that are not finite, so it is not saved. All ranks raise it."""

    everywhere = True


class RankState(NamedTuple):
    """One role's state on this rank, which becomes one file."""

    role: str
    tensors: dict[str, Tensor]
    starts: dict[str, int]  # where each parameter's fragment begins


@dataclass
class _PendingSave:
    """A checkpoint whose files are still written, or wait for their final name."""

    folder: Path
    manifest: dict[str, Any]
    write: Callable[[], Entries]  # writes this rank's files, or waits for the thread that writes them
    since: float
    waited: float  # seconds that training waited for it


class Saver:
    """Writes a run's checkpoints, one at a time. All ranks make the same calls.

    `begin` and `finish` without a step in between save while training waits. In the background, `begin` copies the
    state, a thread writes the copy, and `finish` gives the folder its final name after a later step; it does not wait
    once no rank `is_writing`. Both raise OSError on every rank when any rank fails, and leave older checkpoints as they
    are.

    The newest `keep` stay (0: all), the last two healthy ones, the one with the lowest validation loss, and the first
    at or after each multiple of `keep_every` (0: none). A distillation saves at the end of a round, which need not be
    such a multiple. `metadata` goes into the manifest.
    """

    healthy = HEALTHY

    def __init__(
        self, run: Path, roles: dict[str, TrainedModel], metadata: dict[str, Any], keep: int = 0, keep_every: int = 0
    ) -> None:
        self.run, self.roles, self.metadata, self.keep, self.keep_every = run, roles, metadata, keep, keep_every
        self.leads = dist.get_rank() == 0  # makes the folders and gives them their final names
        self.pending: _PendingSave | None = None
        self.executor = ThreadPoolExecutor(1, "saving")
        self.writer: Future[Entries] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown()

    @property
    def is_writing(self) -> bool:
        """Whether this rank's thread is still writing."""
        return self.writer is not None and not self.writer.done()

    def begin(self, step: int, in_background: bool = False, values: dict[str, Any] | None = None) -> None:
        """Saves the state after `step` steps, with `values` in its manifest. Until `finish` the state may change only
        if it is saved in the background. Raises NotFiniteError on every rank if it is not finite on any."""
        since, folder = time.perf_counter(), step_folder(self.run, step)
        check_finite(self.roles, step)
        manifest = (
            self.metadata
            | (values or {})
            | {
                "step": step,
                "ranks": dist.get_world_size(),
                "roles": {
                    name: {
                        "updates": role.engine.updates(),
                        "sharded": role.engine.sharded,
                        "shapes": {k: list(v) for k, v in role.engine.shapes.items()},
                    }
                    for name, role in self.roles.items()
                },
            }
        )
        write: Callable[[], Entries] = partial(self._write, _unfinished(folder), _rank_states(self.roles))
        self.writer = None
        with self._removed_on_failure(folder) as on_all:
            on_all(partial(self._prepare, _unfinished(folder)))
            if in_background:
                copies: list[RankState] = []
                on_all(lambda: copies.extend(_rank_states(self.roles, copied=True)))
                self.writer = self.executor.submit(self._write, _unfinished(folder), copies)
                write = self.writer.result
        self.pending = _PendingSave(folder, manifest, write, since, time.perf_counter() - since)

    def finish(self) -> str:
        """Completes the pending checkpoint. Returns its size and time, in words."""
        assert self.pending is not None
        pending, self.pending, since = self.pending, None, time.perf_counter()
        with self._removed_on_failure(pending.folder) as on_all:
            files = {name: e for rank in on_all(pending.write) for name, e in rank.items()}
            manifest = pending.manifest | {"files": files}
            retention = self.keep, self.keep_every, self.healthy
            on_all(partial(_commit, pending.folder, manifest, *retention, leads=self.leads))
        end, size = time.perf_counter(), readable(sum(e["bytes"] for e in files.values()))
        summary = f"step {manifest['step']}: saved {size} in {end - pending.since:.2f} s"
        return f"{summary}, of which training waited {pending.waited + end - since:.2f} s" if self.writer else summary

    @contextlib.contextmanager
    def _removed_on_failure(self, folder: Path) -> Iterator[Callable[[Callable[[], T]], list[T]]]:
        """Yields `on_all_ranks` for a save into this folder. A failed save is removed: a full disk needs the space."""
        try:
            yield partial(on_all_ranks, f"could not save {folder}")
        except OSError:
            if self.leads:
                shutil.rmtree(_unfinished(folder), ignore_errors=True)
            raise

    def _prepare(self, unfinished: Path) -> None:
        if self.leads:
            for left in unfinished.parent.glob("*.partial"):  # by a process that was killed in a save
                shutil.rmtree(left)
            for name in self.roles:
                make_folder(unfinished / name)

    def _write(self, unfinished: Path, states: Iterable[RankState]) -> Entries:
        return _write(unfinished, states)


def check_finite(roles: dict[str, TrainedModel], step: int) -> None:
    """Raises NotFiniteError on every rank if weights, moments or moving average are not finite on any."""
    faults = []
    for name, role in roles.items():
        fragments = role.engine.fragments()  # shards may end in padding
        for kind, shards in role.state().items():
            ends = [torch.stack(f.view(shards).detach().aminmax()) for f in fragments if f.length]  # takes no memory
            if ends and not torch.isfinite(torch.stack(ends)).all():
                faults.append(f"{name}: {kind}")
    gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, faults)
    every = sorted({fault for faults in gathered for fault in faults})
    if every:
        ranks = ", ".join(str(rank) for rank, faults in enumerate(gathered) if faults)
        raise NotFiniteError(
            f"the state after step {step} is not saved, because it is not finite ({', '.join(every)}; rank {ranks})"
        )


def file_name(role: str, rank: int) -> str:
    """The file of a rank in a checkpoint."""
    return f"{role}/rank_{rank:05d}.safetensors"


def _unfinished(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _rank_states(roles: dict[str, TrainedModel], copied: bool = False) -> Iterator[RankState]:
    """This rank's state of each role, `copied` to host memory or as views of what is there already."""
    for name, role in roles.items():
        fragments = role.engine.fragments() if role.engine.sharded or dist.get_rank() == 0 else []
        state = {
            f"{kind}/{f.name}": f.view(shards).to("cpu", copy=copied)
            for kind, shards in role.state().items()
            for f in fragments
        }
        state |= {f"{CONSTANT}/{constant}": value for constant, value in role.engine.constants.items()}
        state["random/cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            state["random/cuda"] = torch.cuda.get_rng_state()
        yield RankState(name, state, {f.name: f.start for f in fragments})


def _write(unfinished: Path, states: Iterable[RankState]) -> Entries:
    """Writes this rank's files."""
    files = {}
    for state in states:
        name = file_name(state.role, dist.get_rank())
        save_file(state.tensors, unfinished / name, {"starts": json.dumps(state.starts)})
        files[name] = finish_file(unfinished / name)
    return files


def finish_file(file: Path) -> dict[str, Any]:
    """Waits until a file is on the disk. Returns its entry for a manifest."""
    sync(file)
    sync(file.parent)
    return file_entry(file)


def _commit(
    folder: Path, manifest: dict[str, Any], keep: int, keep_every: int, healthy: int = HEALTHY, leads: bool = True
) -> None:
    """Gives a checkpoint its final name, and removes those that do not stay: the newest `keep` and `healthy`."""
    if not leads:
        return
    unfinished, run = _unfinished(folder), folder.parent.parent
    write_manifest(unfinished, manifest)
    # A run that went back to an older checkpoint saves its steps again.
    move_into_place(unfinished, folder, replace=True)
    write_latest(run, manifest["step"])
    # Damaged checkpoints that a resume skipped may have a later step. They do not count.
    before = [f for f in list_checkpoints(run) if f.name <= folder.name]
    stay = _first_of_each([step_of(f) for f in before], keep_every)
    trusted = list(itertools.islice((f for f in before if is_healthy(f)), healthy)) if keep else []
    best = best_checkpoint(run, step_of(folder)) if keep else None
    for old in before[keep:] if keep else []:
        if step_of(old) not in stay and old not in trusted and old != best:
            leaving = old.with_name(old.name + ".partial")
            os.replace(old, leaving)
            shutil.rmtree(leaving)


def _first_of_each(steps: list[int], keep_every: int) -> set[int]:
    """The first of these steps at or after each multiple of `keep_every`; none for 0. `steps` are latest first."""
    # An earlier step replaces a later one.
    first = {step // keep_every: step for step in steps} if keep_every else {}
    return {step for multiple, step in first.items() if multiple > 0}
