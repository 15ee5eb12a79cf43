"""Weights that a run begins from: a weights folder, another run's averages, or a name on the hub."""

import re
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor

from ...models import strict
from ...models.audiox import WEIGHTS
from ...models.config import without_weight_paths
from ...models.networks import Network
from ...models.weights import load_strict
from ..core.config import InitConfig
from ..core.english import amount
from ..core.files import hash_file
from ..core.integrity import MANIFEST, read_manifest
from . import load
from .convert_run import FILES, choose_checkpoint, read_weights_config

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")  # owner/name or owner/name@revision
HUB_FILES = [*FILES, MANIFEST, "LICENSE"]
SHOWN = 3  # names in a message
LISTED = 20  # names in the log


@dataclass(frozen=True)
class InitialWeights:
    """Tensors by name, and where they come from."""

    source: str  # as in the configuration
    digest: str  # xxh3 of the weights file, or of a checkpoint's manifest, which has the hashes of its files
    model: Any  # JSON of the model's configuration
    tensors: dict[str, Tensor]
    license: str = ""


@dataclass(frozen=True)
class InitRecord:
    """What a run began from; every checkpoint's manifest has it, and `init.json` in its folder."""

    weights: str
    xxh3: str
    loaded: int  # tensors
    new: tuple[str, ...] = ()  # tensors of the model that are not from there
    left_out: tuple[str, ...] = ()  # tensors that are there, and are not used
    license: str = ""

    def lines(self) -> list[str]:
        """For the log."""
        licence = f"; licence {self.license}" if self.license else ""
        found = [f"begins from {self.weights} (xxh3 {self.xxh3}): {amount(self.loaded, 'tensor')} loaded{licence}"]
        for words, names in (("new", self.new), ("left out", self.left_out)):
            if names:
                more = f" and {len(names) - LISTED} more, see init.json" if len(names) > LISTED else ""
                found.append(f"  {words}, {amount(len(names), 'tensor')}: {', '.join(names[:LISTED])}{more}")
        return found


def read_initial_weights(location: str) -> InitialWeights:
    """Reads the weights that `init.weights` names. Of a run these are the averages of its newest checkpoint.

    Raises ValueError naming what is missing, damaged or no such thing.
    """
    folder = Path(location)
    try:
        if load.list_checkpoints(folder):
            return _from_run(location, choose_checkpoint(folder, None))
        return _from_folder(location, folder if folder.is_dir() else _from_hub(location))
    except ValueError as error:
        raise ValueError(f"init.weights: {error}") from None


def begin_from(model: Network, initial: InitialWeights, init: InitConfig) -> InitRecord:
    """Loads the weights into a model, all but those whose names match a pattern of `init.skip`.

    Raises ValueError where the two configurations differ and nothing is skipped; where a tensor that is not skipped is
    absent on either side, or has another shape; where a pattern matches nothing.
    """
    theirs, ours = without_weight_paths(initial.model), without_weight_paths(model.config)
    if theirs != ours and not init.skip:
        where, a, b = strict.difference("model", theirs, ours)
        raise ValueError(
            f"{where}: the weights in {initial.source} have {a!r}, this configuration {b!r}; make them equal, or name "
            f"the tensors that differ in init.skip"
        )
    own = model.state_dict()
    for pattern in init.skip:
        if not any(fnmatchcase(name, pattern) for name in (*own, *initial.tensors)):
            raise ValueError(f"init.skip: {pattern!r} matches no tensor of the model or of {initial.source}")

    def taken(names: Any) -> set[str]:
        return {name for name in names if not any(fnmatchcase(name, pattern) for pattern in init.skip)}

    wanted, given = taken(own), taken(initial.tensors)
    for names, here, there in (
        (wanted - given, "this model", initial.source),
        (given - wanted, initial.source, "this model"),
    ):
        if names:
            first = ", ".join(sorted(names)[:SHOWN])
            raise ValueError(
                f"init.weights: {amount(len(names), 'tensor')} of {here} not in {there}, first {first}; give other "
                f"weights, or name them in init.skip"
            )
    try:
        load_strict(model, own | {name: initial.tensors[name] for name in wanted})
    except ValueError as error:
        raise ValueError(f"init.weights: {initial.source}: {error}; or name it in init.skip") from None
    new, left_out = tuple(sorted(own.keys() - wanted)), tuple(sorted(initial.tensors.keys() - wanted))
    return InitRecord(initial.source, initial.digest, len(wanted), new, left_out, initial.license)


def init_metadata(record: InitRecord | None, before: dict[str, Any] | None, rank: int) -> dict[str, Any]:
    """What goes into the run's manifests: `record`, which rank 0 prints, or what is there already in that of the
    checkpoint `before`."""
    if record is None:
        return {"init": before["init"]} if before and "init" in before else {}
    if rank == 0:
        print("\n".join(record.lines()), flush=True)
    return {"init": asdict(record)}


def _from_folder(location: str, folder: Path) -> InitialWeights:
    config = read_weights_config(folder)
    file = folder / WEIGHTS
    digest = read_manifest(folder)["files"][WEIGHTS]["xxh3"] if (folder / MANIFEST).exists() else hash_file(file)
    return InitialWeights(location, digest, config.get("model"), load_file(file), config.get("license") or "")


def _from_run(location: str, checkpoint: Path) -> InitialWeights:
    manifest = load.read_manifest(checkpoint)
    role = "student" if "student" in manifest["roles"] else "model"
    tensors = load.full_tensors(checkpoint, role, "ema")
    license = (manifest.get("init") or {}).get("license", "")
    return InitialWeights(location, hash_file(checkpoint / MANIFEST), manifest["config"]["model"], tensors, license)


def _from_hub(location: str) -> Path:
    """The folder of a hub's cache with the files of this name, which are downloaded if they are not there."""
    if not HUB_NAME.fullmatch(location):
        raise ValueError(f"{location} is no folder; give a weights folder, a run, or a name on the hub (owner/name)")
    name, _, revision = location.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(f"{location} is no folder here, and no hub gave it ({reason})") from None
