"""Finding and loading checkpoints, also on another number of ranks: how a run resumes.

    run/latest.json                                             which step was saved last
    run/checkpoints/step_00001000/manifest.json                 step, configuration, hashes of the files
                                  model/rank_00000.safetensors  this rank's fragments of weights, moments and EMA

A folder without the ending `.partial` is complete: it is renamed once every rank has written and the manifest is there.
Fragments are found by parameter name and position, so any number of ranks and any ZeRO stage can load what any other
wrote. Nothing is unpickled. The folders count, not `latest.json`, which only distinguishes a run whose checkpoints were
lost from one that never had any.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...models import strict
from ..core.cli import ExitCode, exit_code_of
from ..core.files import write_json
from ..core.integrity import ManifestError, file_fault, read_manifest, with_hash
from ..engine.ema import Ema
from ..engine.fragment import Fragment

if TYPE_CHECKING:  # so that a checkpoint can be converted where DeepSpeed is not installed
    from ..engine.zero import Engine

FOLDER = "checkpoints"
LATEST = "latest.json"
T = TypeVar("T")


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete or of another model; the message names it."""


class NoUsableCheckpointError(CheckpointError):
    """A run has saved checkpoints, and none can be loaded."""

    exit_code = ExitCode.CORRUPT


class DeviceLostError(OSError):
    """A GPU, or the network between GPUs, failed on a rank during a save."""

    exit_code = ExitCode.HUNG  # a retry may succeed


@dataclass
class TrainedModel:
    """A trained model, whose state goes into checkpoints."""

    engine: "Engine"
    ema: Ema | None

    def state(self) -> dict[str, list[Tensor]]:
        """All tensors with the layout of the engine's shards."""
        state = {"weights": self.engine.shards(), **self.engine.moments()}
        return state | ({"ema": self.ema.values} if self.ema else {})


def step_folder(run: Path, step: int) -> Path:
    return run / FOLDER / f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a complete checkpoint, from its name. What is loaded takes the step from the manifest."""
    digits = folder.name.removeprefix("step_")
    return int(digits) if digits.isdigit() else -1


def list_checkpoints(run: Path) -> list[Path]:
    """The run's complete checkpoints, newest first."""
    folders = (run / FOLDER).glob("step_*") if (run / FOLDER).is_dir() else ()
    return sorted((p for p in folders if p.suffix != ".partial"), key=lambda p: p.name, reverse=True)


def newest_manifest(run: Path, step: int | None = None) -> dict[str, Any] | None:
    """The manifest of the newest checkpoint whose manifest can be read, or of the one of this step."""
    for folder in list_checkpoints(run) if step is None else [step_folder(run, step)]:
        try:
            return read_manifest(folder)
        except ManifestError:
            continue  # `newest_intact` skips it too, and reports it
    return None


def find_fault(folder: Path, part: int = 0, parts: int = 1) -> str:
    """The first fault in every `parts`-th file of a checkpoint; "" if there is none."""
    try:
        files = sorted(read_manifest(folder)["files"].items())
    except ManifestError as error:
        return str(error)
    for name, expected in files[part::parts]:
        if fault := file_fault(folder / name, expected):
            return fault
    return ""


def find_fault_together(folder: Path) -> str:
    """The first fault of a checkpoint, the same on all ranks, which share the reading."""
    faults = on_all_ranks("", partial(find_fault, folder, dist.get_rank(), dist.get_world_size()))
    return next((f for f in faults if f), "")


def newest_intact(run: Path, report: Callable[[str], None]) -> Path | None:
    """The newest intact checkpoint, the same on all ranks. `report` is called for damaged ones.

    None if the run never had a checkpoint. Raises NoUsableCheckpointError if it had some and all are damaged or gone.
    """
    candidates, last = from_rank_0(lambda: (list_checkpoints(run), _last_saved_step(run)))
    if last and not (candidates and step_of(candidates[0]) >= int(last)):
        report(f"{run / LATEST}: step {last} was saved last, and its checkpoint is gone")
    for folder in candidates:
        fault = find_fault_together(folder)
        if not fault:
            return folder
        report(f"skipped a damaged checkpoint: {fault}")
    if candidates:
        raise NoUsableCheckpointError(
            f"{run}: all {len(candidates)} checkpoints are damaged; restore one, or start again in another --output"
        )
    if last is not None:
        raise NoUsableCheckpointError(
            f"{run}: it was saved, and its checkpoints are gone; restore {run / FOLDER}, or start again in another "
            f"--output"
        )
    return None


def write_latest(run: Path, step: int) -> None:
    write_json(run / LATEST, with_hash({"step": step}))


def _last_saved_step(run: Path) -> str | None:
    """The step in `latest.json`; "" if the file is damaged, None if there is none."""
    try:
        return str(int(strict.parse_json((run / LATEST).read_text())["step"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return ""


def load(folder: Path, roles: dict[str, TrainedModel]) -> dict[str, Any]:
    """Loads a checkpoint into the roles, on any number of ranks and at any ZeRO stage. Returns the manifest.

    Random states are restored if the number of ranks is the same. Raises CheckpointError when shapes differ.
    """
    manifest = read_manifest(folder)
    if manifest["roles"].keys() != roles.keys():
        raise CheckpointError(f"{folder} holds the roles {sorted(manifest['roles'])}, the run has {sorted(roles)}")
    for name, role in roles.items():
        check_shapes(f"{folder}: {name}", manifest["roles"][name]["shapes"], role.engine.shapes)
        files = _FragmentFiles(folder, name, manifest)
        updates = manifest["roles"][name]["updates"]
        role.engine.set_updates(updates)
        with torch.no_grad():
            for kind, shards in role.state().items():
                for fragment in role.engine.fragments():
                    files.copy(kind, fragment, fragment.view(shards))
        role.engine.refresh_model()
        if manifest["ranks"] == dist.get_world_size():
            files.restore_random(dist.get_rank())
    return manifest


def check_shapes(where: str, theirs: dict[str, list[int]], ours: dict[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError with the first parameter that differs, and both shapes."""
    for name in sorted(theirs.keys() | ours.keys()):
        a, b = theirs.get(name), ours.get(name)
        if a is None or b is None or tuple(a) != b:
            raise CheckpointError(f"{where}: {name} is {a or 'absent'} there and {list(b) if b else 'absent'} here")


def full_tensors(folder: Path, role: str, kind: str) -> dict[str, Tensor]:
    """Whole parameters by name, assembled from all ranks' fragments. `kind` is "weights" or "ema".

    Raises CheckpointError when the checkpoint does not hold them.
    """
    manifest = read_manifest(folder)
    shapes = manifest["roles"].get(role, {}).get("shapes")
    if shapes is None:
        raise CheckpointError(f"{folder} has no role {role!r}")
    files, result = _FragmentFiles(folder, role, manifest), {}
    for name, shape in shapes.items():
        flat = torch.empty(int(torch.Size(shape).numel()))
        files.copy(kind, Fragment(name, tuple(shape), 0, flat.numel(), 0, 0), flat)
        result[name] = flat.view(shape)
    return result


class _FragmentFiles:
    """All ranks' files of a role, and where the fragments of each parameter are in them."""

    def __init__(self, folder: Path, role: str, manifest: dict[str, Any]) -> None:
        self.folder = folder / role
        names = sorted(name for name in manifest["files"] if name.startswith(f"{role}/"))
        self.files = [safe_open(folder / name, "pt") for name in names]
        self.index: dict[str, list[tuple[int, int]]] = {}  # name -> (start, file)
        for number, file in enumerate(self.files):
            for name, start in strict.parse_json(file.metadata()["starts"]).items():
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


def on_all_ranks(failure: str, act: Callable[[], T]) -> list[T]:
    """Runs `act` on every rank and collects the results. An error on any rank is raised on all, as an OSError."""
    result: Any = None
    error, code = "", ExitCode.DONE
    try:
        result = act()
    except (OSError, RuntimeError, SafetensorError) as caught:  # SafetensorError is a full disk
        error, code = f"rank {dist.get_rank()}: {caught}", exit_code_of(caught)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (result, error, code))
    errors = [e for _, e, _ in gathered if e]
    if errors:
        kind = DeviceLostError if any(code == ExitCode.HUNG for *_, code in gathered) else OSError
        raise kind(f"{failure}: {'; '.join(errors)}")
    return [r for r, *_ in gathered]


def from_rank_0(act: Callable[[], T]) -> T:
    """The result of rank 0, on every rank."""
    box: list[Any] = [act() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]
