"""Writing checkpoints, all roles as one unit: while training waits, or beside it.

What is not published does not count, whenever a rank dies: its folder ends in `.partial`, and the next save removes it.
"""

import contextlib
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

from ..core.files import publish, sync, write_json
from ..core.integrity import file_entry, write_manifest
from ..cost.role_bytes import readable
from .load import LATEST, Role, complete, everywhere, step_folder, step_of

Entries = dict[str, dict[str, Any]]  # what a manifest says of files, by name
T = TypeVar("T")


class _Share(NamedTuple):
    """What this rank keeps of a role: one file."""

    role: str
    tensors: dict[str, Tensor]
    starts: dict[str, int]  # of each parameter's fragment


@dataclass
class _Begun:
    """A checkpoint that is not published yet."""

    folder: Path
    manifest: dict[str, Any]
    write: Callable[[], Entries]  # writes this rank's files, or waits for the thread that does
    since: float
    waited: float  # seconds that training stood still for it


class Saver:
    """Writes a run's checkpoints, one after the other; all ranks make the same calls.

    `begin` and `finish` without a step between them save while training waits. Beside the training, `begin` copies the
    state, a thread writes the copy, and `finish` publishes it after a later step, without a wait where no rank `writes`
    any more. Both raise OSError on every rank when any rank could not; the checkpoints that were there before are not
    touched.

    The newest `keep` stay (0: all), and the first at or after each multiple of `keep_every` (0: none of them): a
    distillation saves where a round ends, which need not be at one. `about` goes into the manifest.
    """

    def __init__(
        self, run: Path, roles: dict[str, Role], about: dict[str, Any], keep: int = 0, keep_every: int = 0
    ) -> None:
        self.run, self.roles, self.about, self.keep, self.keep_every = run, roles, about, keep, keep_every
        self.begun: _Begun | None = None
        self.threads = ThreadPoolExecutor(1, "saving")
        self.thread: Future[Entries] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown()

    @property
    def writes(self) -> bool:
        """Whether this rank's thread is at work."""
        return self.thread is not None and not self.thread.done()

    def begin(self, step: int, beside: bool = False) -> None:
        """Of the state after `step` steps, which may change before `finish` only if saved `beside` training."""
        since, folder = time.perf_counter(), step_folder(self.run, step)
        manifest = self.about | {
            "step": step,
            "ranks": dist.get_world_size(),
            "roles": {
                name: {"updates": role.engine.updates(), "shapes": {k: list(v) for k, v in role.engine.shapes.items()}}
                for name, role in self.roles.items()
            },
        }
        write: Callable[[], Entries] = partial(_write, _unfinished(folder), _shares(self.roles))
        self.thread = None
        with _attempt(folder) as on_all:
            on_all(partial(_prepare, _unfinished(folder), list(self.roles)))
            if beside:
                copies: list[_Share] = []
                on_all(lambda: copies.extend(_shares(self.roles, copied=True)))
                self.thread = self.threads.submit(_write, _unfinished(folder), copies)
                write = self.thread.result
        self.begun = _Begun(folder, manifest, write, since, time.perf_counter() - since)

    def finish(self) -> str:
        """Publishes what was begun; what it took, in words."""
        assert self.begun is not None
        begun, self.begun, since = self.begun, None, time.perf_counter()
        with _attempt(begun.folder) as on_all:
            files = {name: e for rank in on_all(begun.write) for name, e in rank.items()}
            manifest = begun.manifest | {"files": files}
            on_all(partial(_publish, begun.folder, manifest, self.keep, self.keep_every))
        end, size = time.perf_counter(), readable(sum(e["bytes"] for e in files.values()))
        took = f"step {manifest['step']}: saved {size} in {end - begun.since:.2f} s"
        return f"{took}, of which training waited {begun.waited + end - since:.2f} s" if self.thread else took


def _unfinished(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


@contextlib.contextmanager
def _attempt(folder: Path) -> Iterator[Callable[[Callable[[], T]], list[T]]]:
    """`everywhere` for a save into this folder. Where that fails, what is half written goes: a full disk needs room."""
    try:
        yield partial(everywhere, f"could not save {folder}")
    except OSError:
        if dist.get_rank() == 0:
            shutil.rmtree(_unfinished(folder), ignore_errors=True)
        raise


def _prepare(unfinished: Path, roles: list[str]) -> None:
    if dist.get_rank() == 0:
        for left in unfinished.parent.glob("*.partial"):  # by a process that was killed while it saved
            shutil.rmtree(left)
        for name in roles:
            (unfinished / name).mkdir(parents=True)


def _shares(roles: dict[str, Role], copied: bool = False) -> Iterator[_Share]:
    """This rank's, role after role; `copied` to host memory, or views of what lies there already."""
    for name, role in roles.items():
        fragments = role.engine.fragments() if role.engine.sharded or dist.get_rank() == 0 else []
        state = {
            f"{kind}/{f.name}": f.view(shards).to("cpu", copy=copied)
            for kind, shards in role.state().items()
            for f in fragments
        }
        state["random/cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            state["random/cuda"] = torch.cuda.get_rng_state()
        yield _Share(name, state, {f.name: f.start for f in fragments})


def _write(unfinished: Path, shares: Iterable[_Share]) -> Entries:
    rank, files = dist.get_rank(), {}
    for share in shares:
        file = unfinished / share.role / f"rank_{rank:05d}.safetensors"
        save_file(share.tensors, file, {"starts": json.dumps(share.starts)})
        sync(file)
        sync(file.parent)
        files[f"{share.role}/{file.name}"] = file_entry(file)
    return files


def _publish(folder: Path, manifest: dict[str, Any], keep: int, keep_every: int) -> None:
    if dist.get_rank() != 0:
        return
    unfinished = _unfinished(folder)
    write_manifest(unfinished, manifest)
    publish(unfinished, folder, replace=True)  # a run that went back to an older checkpoint saves its steps again
    write_json(folder.parent.parent / LATEST, {"step": manifest["step"]})
    # Damaged ones that were passed over may have a later step; they do not count.
    before = [f for f in complete(folder.parent.parent) if f.name <= folder.name]
    stay = _first_of_each([step_of(f) for f in before], keep_every)
    for old in before[keep:] if keep else []:
        if step_of(old) not in stay:
            leaving = old.with_name(old.name + ".partial")
            os.replace(old, leaving)
            shutil.rmtree(leaving)


def _first_of_each(steps: list[int], keep_every: int) -> set[int]:
    """Of these steps, latest first, the first at or after each multiple of `keep_every`; none for 0."""
    # An earlier one takes a later one's place.
    first = {step // keep_every: step for step in steps} if keep_every else {}
    return {step for multiple, step in first.items() if multiple > 0}
