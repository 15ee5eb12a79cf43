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
from safetensors import SafetensorError
from torch import Tensor

from ...models import strict
from ..core.cli import ExitCode, exit_code_of
from ..core.english import first
from ..core.files import write_json
from ..core.integrity import ManifestError, file_fault, read_manifest, with_hash
from ..engine.ema import Ema
from ..engine.fragment import Fragment
from .fragment_files import CheckpointError, FragmentFiles

if TYPE_CHECKING:  # so that a checkpoint can be converted where DeepSpeed is not installed
    from ..engine.zero import Engine

FOLDER = "checkpoints"
VALIDATION = "validation_loss"  # in a manifest: on samples that training does not read
SCORE = "score"  # in a manifest: {"metric", "value", "better"}, of sounds for fixed prompts
LATEST = "latest.json"
NAMED = 8  # of the ranks that fail with one another
T = TypeVar("T")


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


def best_checkpoint(run: Path, up_to: int | None = None) -> Path | None:
    """The checkpoint with the best score, by the metric of the newest that has one, or else with the lowest loss on
    held-out samples; the first of equals, among those up to a step. None if none was measured."""
    losses: list[tuple[float, str, Path]] = []
    scores: dict[str, list[tuple[float, str, Path]]] = {}
    for folder in list_checkpoints(run):  # the newest first
        if up_to is not None and step_of(folder) > up_to:
            continue
        try:
            manifest = read_manifest(folder)
        except ManifestError:
            continue
        if isinstance(loss := manifest.get(VALIDATION), float):
            losses.append((loss, folder.name, folder))
        if score := manifest.get(SCORE):
            value = -score["value"] if score["better"] == "higher" else score["value"]
            scores.setdefault(score["metric"], []).append((value, folder.name, folder))
    measured = next(iter(scores.values()), losses)
    return min(measured)[2] if measured else None


def choose_checkpoint(run: Path, step: int | None, best: bool = False) -> Path:
    """The checkpoint to convert: the newest, that of a step, or the `best`. Raises CheckpointError if there is none, or
    it is damaged."""
    folders = list_checkpoints(run)
    if best and folders:
        if not (found := best_checkpoint(run)):
            raise CheckpointError(
                f"--best: no checkpoint of {run} has a loss on held-out samples or a score; set validation.every or "
                f"scores.best for a training that measures it, or choose one by --step"
            )
        folders.remove(found)
        folders.insert(0, found)
    if step is not None:
        folders = [f for f in folders if step_of(f) == step]
    if not folders:
        of_step = "" if step is None else f" of step {step}"
        raise CheckpointError(f"{run} holds no complete checkpoint{of_step}; is it the folder of a run?")
    fault = find_fault(folders[0])
    if fault:
        older = ", ".join(f.name for f in folders[1:]) or "none"
        raise CheckpointError(f"{fault}. Older checkpoints of this run: {older}; take one with --step")
    return folders[0]


def find_fault_together(folder: Path) -> str:
    """The first fault of a checkpoint, the same on all ranks, which share the reading."""
    faults = on_all_ranks("", partial(find_fault, folder, dist.get_rank(), dist.get_world_size()))
    return next((f for f in faults if f), "")


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint, intact or not, the same on all ranks; 0 without any."""
    return from_rank_0(lambda: max([0, *map(step_of, list_checkpoints(run))]))


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
    """Loads a checkpoint into the roles, on any number of ranks and at any ZeRO stage. Returns the manifest. As many
    ranks at the same stage open only their own file each.

    Random states are restored if the number of ranks is the same. Raises CheckpointError when shapes differ.
    """
    manifest, rank, ranks = read_manifest(folder), dist.get_rank(), dist.get_world_size()
    if manifest["roles"].keys() != roles.keys():
        raise CheckpointError(f"{folder} holds the roles {sorted(manifest['roles'])}, the run has {sorted(roles)}")
    for name, role in roles.items():
        check_shapes(f"{folder}: {name}", manifest["roles"][name]["shapes"], role.engine.shapes)
        files = FragmentFiles(folder, name, manifest)
        updates = manifest["roles"][name]["updates"]
        role.engine.set_updates(updates)
        state = role.state()
        wanted = [(f, {kind: f.view(shards) for kind, shards in state.items()}) for f in role.engine.fragments()]
        with torch.no_grad():
            files.copy(wanted, rank, ranks)
            role.engine.set_constants(files.constants(rank) if role.engine.constants else {})
        role.engine.refresh_model()
        if manifest["ranks"] == ranks:
            files.restore_random(rank)
    return manifest


def check_shapes(where: str, theirs: dict[str, list[int]], ours: dict[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError with the first parameter that differs, and both shapes."""
    for name in sorted(theirs.keys() | ours.keys()):
        a, b = theirs.get(name), ours.get(name)
        if a is None or b is None or tuple(a) != b:
            raise CheckpointError(f"{where}: {name} is {a or 'absent'} there and {list(b) if b else 'absent'} here")


def full_tensors(folder: Path, role: str, kind: str) -> dict[str, Tensor]:
    """Whole parameters by name, assembled from all ranks' fragments, and the model's constants. `kind` is "weights" or
    "ema".

    Raises CheckpointError when the checkpoint does not hold them.
    """
    manifest = read_manifest(folder)
    shapes = manifest["roles"].get(role, {}).get("shapes")
    if shapes is None:
        raise CheckpointError(f"{folder} has no role {role!r}")
    whole = {name: Fragment(name, tuple(shape), 0, torch.Size(shape).numel(), 0, 0) for name, shape in shapes.items()}
    flat = {name: torch.empty(fragment.length) for name, fragment in whole.items()}
    files = FragmentFiles(folder, role, manifest)
    files.copy([(whole[name], {kind: flat[name]}) for name in whole])
    return {name: flat[name].view(fragment.shape) for name, fragment in whole.items()} | files.constants()


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
        raise kind(f"{failure}: {first(errors, NAMED, '; ')}")
    return [r for r, *_ in gathered]


def from_rank_0(act: Callable[[], T]) -> T:
    """The result of rank 0, on every rank."""
    box: list[Any] = [act() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]
