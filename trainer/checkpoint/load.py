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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core.cli import ExitCode, exit_code_of
from ..core.integrity import ManifestError, file_fault, read_manifest
from ..engine.ema import Ema
from ..engine.fragment import Fragment

if TYPE_CHECKING:  # so that a checkpoint can be exported where DeepSpeed is not installed
    from ..engine.zero import Engine

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


def step_folder(run: Path, step: int) -> Path:
    return run / FOLDER / f"step_{step:08d}"


def step_of(folder: Path) -> int:
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
    if last and not (candidates and step_of(candidates[0]) >= int(last)):
        report(f"{run / LATEST}: step {last} was saved last, and its checkpoint is gone")
    for folder in candidates:
        faults = everywhere("", partial(verify, folder, dist.get_rank(), dist.get_world_size()))
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


def everywhere(failure: str, act: Callable[[], T]) -> list[T]:
    """Run on every rank and collect what each returns; an error on any rank is raised on all of them, as an OSError."""
    result: Any = None
    error, code = "", ExitCode.DONE
    try:
        result = act()
    except (OSError, RuntimeError, SafetensorError) as caught:  # the last is how safetensors reports a full disk
        error, code = f"rank {dist.get_rank()}: {caught}", exit_code_of(caught)
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
