"""Checkpoints: every rank's fragments in safetensors, hashed, published by one rename.

    run/latest.json                                             which step was saved last
    run/checkpoints/step_00001000/manifest.json                 what is in it: step, configuration, hashes
                                  model/rank_00000.safetensors  this rank's fragments of weights, moments and EMA

A folder without the `.partial` ending is complete: it is renamed when every rank has written and the manifest is there.
Fragments are found by parameter name and position, so any number of ranks and any ZeRO stage can load what any other
wrote. Nothing is unpickled. What is there counts, not what `latest.json` says: it only tells a run whose checkpoints
are gone from one that never had any.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .command import ExitCode, code_of
from .ema import Ema
from .files import sync, write_json
from .fragment import Fragment
from .sealed import ManifestError, entry, file_fault, read_manifest, write_manifest

if TYPE_CHECKING:  # so that a checkpoint can be exported where DeepSpeed is not installed
    from .zero import Engine

FOLDER = "checkpoints"
LATEST = "latest.json"
T = TypeVar("T")


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete or of another model; the message names it."""


class NothingLeftError(CheckpointError):
    """A run was saved, and nothing of it can be loaded."""

    exit_code = ExitCode.CORRUPT


class LostDeviceError(OSError):
    """A GPU, or the network between GPUs, failed on some rank while all were saving."""

    exit_code = ExitCode.HUNG  # it may go well another time


@dataclass
class Role:
    """A trained model whose state belongs into a checkpoint."""

    engine: "Engine"
    ema: Ema | None

    def state(self) -> dict[str, list[Tensor]]:
        """Everything that is laid out like the engine's shards."""
        state = {"weights": self.engine.shards(), **self.engine.moments()}
        return state | ({"ema": self.ema.values} if self.ema else {})


def save(run: Path, step: int, roles: dict[str, Role], keep: int, about: dict[str, Any], keep_every: int = 0) -> Path:
    """Write the state of all roles after `step` steps as one unit; all ranks call this.

    The newest `keep` stay (0: all), and the first at or after each multiple of `keep_every` (0: none of them): a
    distillation saves where a round ends, which need not be at one. `about` goes into the manifest. Raises OSError on
    every rank when any rank could not write; the checkpoints that were there before are not touched.
    """
    folder = run / FOLDER / f"step_{step:08d}"
    unfinished = folder.with_name(folder.name + ".partial")
    failure = f"could not save {folder}"
    try:
        _everywhere(failure, partial(_prepare, unfinished, roles))
        files = _everywhere(failure, partial(_write_rank, unfinished, roles))
        manifest = about | {
            "step": step,
            "ranks": dist.get_world_size(),
            "files": {name: described for rank in files for name, described in rank.items()},
            "roles": {
                name: {"updates": role.engine.updates(), "shapes": {k: list(v) for k, v in role.engine.shapes.items()}}
                for name, role in roles.items()
            },
        }
        _everywhere(failure, partial(_publish, unfinished, folder, manifest, keep, keep_every))
    except OSError:
        if dist.get_rank() == 0:
            shutil.rmtree(unfinished, ignore_errors=True)  # a full disk needs the room
        raise
    return folder


def _prepare(unfinished: Path, roles: dict[str, Role]) -> None:
    if dist.get_rank() == 0:
        for left in unfinished.parent.glob("*.partial"):  # by a process that was killed while it saved
            shutil.rmtree(left)
        for name in roles:
            (unfinished / name).mkdir(parents=True)


def _write_rank(unfinished: Path, roles: dict[str, Role]) -> dict[str, dict[str, Any]]:
    rank, files = dist.get_rank(), {}
    for name, role in roles.items():
        fragments = role.engine.fragments() if role.engine.sharded or rank == 0 else []
        state = role.state()
        tensors = {f"{kind}/{f.name}": f.view(shards).cpu() for kind, shards in state.items() for f in fragments}
        tensors["random/cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        file = unfinished / name / f"rank_{rank:05d}.safetensors"
        save_file(tensors, file, {"starts": json.dumps({f.name: f.start for f in fragments})})
        sync(file)
        sync(file.parent)
        files[f"{name}/{file.name}"] = entry(file)
    return files


def _publish(unfinished: Path, folder: Path, manifest: dict[str, Any], keep: int, keep_every: int) -> None:
    if dist.get_rank() != 0:
        return
    write_manifest(unfinished, manifest)
    sync(unfinished)
    former = folder.with_name(folder.name + ".old.partial")  # a kill must not leave half of one under a good name
    if folder.exists():  # the same step of a run that went back to an older checkpoint
        os.replace(folder, former)
    os.replace(unfinished, folder)
    sync(folder.parent)
    if former.exists():
        shutil.rmtree(former)
    write_json(folder.parent.parent / LATEST, {"step": manifest["step"]})
    # Damaged ones that were passed over may have a later step; they do not count.
    before = [f for f in complete(folder.parent.parent) if f.name <= folder.name]
    stay = _first_of_each([_step(f) for f in before], keep_every)
    for old in before[keep:] if keep else []:
        if _step(old) not in stay:
            leaving = old.with_name(old.name + ".partial")
            os.replace(old, leaving)
            shutil.rmtree(leaving)


def _first_of_each(steps: list[int], keep_every: int) -> set[int]:
    """Of these steps, latest first, the first at or after each multiple of `keep_every`; none for 0."""
    first = (
        {step // keep_every: step for step in steps} if keep_every else {}
    )  # an earlier one takes a later one's place
    return {step for multiple, step in first.items() if multiple > 0}


def _step(folder: Path) -> int:
    """Of a published checkpoint, for what needs no more than its name."""
    digits = folder.name.removeprefix("step_")
    return int(digits) if digits.isdigit() else -1


def complete(run: Path) -> list[Path]:
    """The run's published checkpoints, newest first."""
    found = (run / FOLDER).glob("step_*") if (run / FOLDER).is_dir() else ()
    return sorted((p for p in found if p.suffix != ".partial"), key=lambda p: p.name, reverse=True)


def newest_manifest(run: Path) -> dict[str, Any] | None:
    """Of the newest checkpoint whose manifest can be read."""
    for folder in complete(run):
        try:
            return read_manifest(folder)
        except ManifestError:
            continue  # `newest` passes it over too, and says so
    return None


def verify(folder: Path, part: int = 0, parts: int = 1) -> str:
    """What is wrong with every `parts`-th file of a checkpoint, or "" if nothing is."""
    try:
        files = sorted(read_manifest(folder)["files"].items())
    except ManifestError as error:
        return str(error)
    for name, expected in files[part::parts]:
        if fault := file_fault(folder / name, expected):
            return fault
    return ""


def newest(run: Path, report: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint, the same on all ranks, which share the reading; `report` hears of damaged ones.

    None where the run never had a checkpoint. Raises NothingLeftError where it had some and all are damaged or gone.
    """
    candidates, last = _from_first(lambda: (complete(run), _last_saved(run)))
    if last and not (candidates and _step(candidates[0]) >= int(last)):
        report(f"{run / LATEST}: step {last} was saved last, and its checkpoint is gone")
    for folder in candidates:
        faults = _everywhere("", partial(verify, folder, dist.get_rank(), dist.get_world_size()))
        fault = next((f for f in faults if f), "")
        if not fault:
            return folder
        report(f"damaged checkpoint passed over: {fault}")
    if candidates:
        raise NothingLeftError(
            f"{run}: all {len(candidates)} checkpoints are damaged; restore one, or begin anew in another --output"
        )
    if last is not None:
        raise NothingLeftError(
            f"{run}: it was saved, and its checkpoints are gone; restore {run / FOLDER}, or begin anew in another "
            f"--output"
        )
    return None


def _last_saved(run: Path) -> str | None:
    """The step in `latest.json`; "" where the file says nothing of use, None where there is none."""
    try:
        return str(int(json.loads((run / LATEST).read_text())["step"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return ""


def load(folder: Path, roles: dict[str, Role]) -> dict[str, Any]:
    """Put a checkpoint's state into the roles, on any number of ranks and at any ZeRO stage; returns the manifest.

    Random states come back where the number of ranks is the same. Raises CheckpointError when shapes differ.
    """
    manifest = read_manifest(folder)
    if manifest["roles"].keys() != roles.keys():
        raise CheckpointError(f"{folder} holds the roles {sorted(manifest['roles'])}, the run has {sorted(roles)}")
    for name, role in roles.items():
        check_shapes(f"{folder}: {name}", manifest["roles"][name]["shapes"], role.engine.shapes)
        pieces = _Pieces(folder, name, manifest)
        updates = manifest["roles"][name]["updates"]
        role.engine.set_updates(updates)
        with torch.no_grad():
            for kind, shards in role.state().items():
                for fragment in role.engine.fragments():
                    pieces.copy(kind, fragment, fragment.view(shards))
        role.engine.publish()
        if manifest["ranks"] == dist.get_world_size():
            pieces.restore_random(dist.get_rank())
    return manifest


def check_shapes(where: str, theirs: dict[str, list[int]], ours: dict[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError with the first parameter that differs, and both shapes."""
    for name in sorted(theirs.keys() | ours.keys()):
        a, b = theirs.get(name), ours.get(name)
        if a is None or b is None or tuple(a) != b:
            raise CheckpointError(f"{where}: {name} is {a or 'absent'} there and {list(b) if b else 'absent'} here")


def full_tensors(folder: Path, role: str, kind: str) -> dict[str, Tensor]:
    """Whole parameters by name, put together from all ranks' fragments; `kind` is "weights" or "ema".

    Raises CheckpointError when the checkpoint does not hold them.
    """
    manifest = read_manifest(folder)
    shapes = manifest["roles"].get(role, {}).get("shapes")
    if shapes is None:
        raise CheckpointError(f"{folder} has no role {role!r}")
    pieces, result = _Pieces(folder, role, manifest), {}
    for name, shape in shapes.items():
        flat = torch.empty(int(torch.Size(shape).numel()))
        pieces.copy(kind, Fragment(name, tuple(shape), 0, flat.numel(), 0, 0), flat)
        result[name] = flat.view(shape)
    return result


class _Pieces:
    """All ranks' files of a role that the manifest lists: which piece of which parameter lies where."""

    def __init__(self, folder: Path, role: str, manifest: dict[str, Any]) -> None:
        self.folder = folder / role
        names = sorted(name for name in manifest["files"] if name.startswith(f"{role}/"))
        self.files = [safe_open(folder / name, "pt") for name in names]
        self.index: dict[str, list[tuple[int, int]]] = {}  # name -> (start, file)
        for number, file in enumerate(self.files):
            for name, start in json.loads(file.metadata()["starts"]).items():
                self.index.setdefault(name, []).append((start, number))

    def copy(self, kind: str, wanted: Fragment, into: Tensor) -> None:
        copied = 0
        for start, number in self.index.get(wanted.name, ()):
            key = f"{kind}/{wanted.name}"
            if key not in self.files[number].keys():
                raise CheckpointError(f"{self.folder} holds no {kind} of {wanted.name}")
            piece = self.files[number].get_slice(key)
            low = max(start, wanted.start)
            high = min(start + piece.get_shape()[0], wanted.start + wanted.length)
            if low < high:
                into[low - wanted.start : high - wanted.start].copy_(piece[low - start : high - start])
                copied += high - low
        if copied != wanted.length:
            raise CheckpointError(f"{self.folder}: {copied} of {wanted.length} elements of {wanted.name} are there")

    def restore_random(self, rank: int) -> None:
        torch.set_rng_state(self.files[rank].get_tensor("random/cpu"))
        if torch.cuda.is_available() and "random/cuda" in self.files[rank].keys():
            torch.cuda.set_rng_state(self.files[rank].get_tensor("random/cuda"))


def _everywhere(failure: str, act: Callable[[], T]) -> list[T]:
    """Run on every rank and collect what each returns; an error on any rank is raised on all of them, as an OSError."""
    result: Any = None
    error, code = "", ExitCode.DONE
    try:
        result = act()
    except (OSError, RuntimeError, SafetensorError) as caught:  # the last is how safetensors reports a full disk
        error, code = f"rank {dist.get_rank()}: {caught}", code_of(caught)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (result, error, code))
    errors = [e for _, e, _ in gathered if e]
    if errors:
        kind = LostDeviceError if any(code == ExitCode.HUNG for *_, code in gathered) else OSError
        raise kind(f"{failure}: {'; '.join(errors)}")
    return [r for r, *_ in gathered]


def _from_first(act: Callable[[], T]) -> T:
    """What rank 0 returns, on every rank."""
    box: list[Any] = [act() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]
