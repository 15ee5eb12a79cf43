"""Weights that a run begins from: a weights folder, another run's averages, or a name on the hub."""

from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ...models import strict
from ...models.audiox import WEIGHTS
from ...models.config import without_weight_paths
from ...models.int8 import Int8Weight
from ...models.lora import LoraConfig
from ...models.networks import Network
from ...models.weights import load_strict
from ..core.config import InitConfig
from ..core.english import amount, first
from ..core.files import hash_file
from ..core.integrity import MANIFEST, ChangedError, read_manifest
from . import load
from .hub import commit_of, find_folder
from .load import choose_checkpoint
from .weights_folder import read_weights_config

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
    commit: str = ""  # of the hub


@dataclass(frozen=True)
class InitRecord:
    """What a run began from; every checkpoint's manifest has it, and `init.json` in its folder."""

    weights: str
    xxh3: str
    loaded: int  # tensors
    new: tuple[str, ...] = ()  # tensors of the model that are not from there
    left_out: tuple[str, ...] = ()  # tensors that are there, and are not used
    license: str = ""
    commit: str = ""  # of the hub

    def lines(self) -> list[str]:
        """For the log."""
        licence = f"; licence {self.license}" if self.license else ""
        commit = f"commit {self.commit}, " if self.commit else ""
        what = f"{commit}xxh3 {self.xxh3}"
        found = [f"begins from {self.weights} ({what}): {amount(self.loaded, 'tensor')} loaded{licence}"]
        for words, names in (("new", self.new), ("left out", self.left_out)):
            if names:
                where = ", see init.json" if len(names) > LISTED else ""
                found.append(f"  {words}, {amount(len(names), 'tensor')}: {first(names, LISTED)}{where}")
        return found


def read_initial_weights(location: str) -> InitialWeights:
    """Reads the weights that `init.weights` names. Of a run these are the averages of its newest checkpoint.

    Raises ValueError naming what is missing, damaged or no such thing.
    """
    folder = Path(location)
    try:
        if load.list_checkpoints(folder):
            return _from_run(location, choose_checkpoint(folder, None))
        return _from_folder(location, find_folder(location))
    except ValueError as error:
        raise ValueError(f"init.weights: {error}") from None


def adapters_of(config: dict[str, Any]) -> LoraConfig | None:
    """The adapters that a run of this configuration trains: of its model, or of a distillation's student."""
    where = "lora" if "student" not in config else "student.lora"
    found = config.get("student", config).get("lora")
    return strict.parse(LoraConfig, found, where) if found else None


def read_recorded_weights(record: dict[str, Any]) -> InitialWeights:
    """Those that a run began from, by its record; of the hub the same commit. Raises ChangedError where they are others
    now."""
    name, commit = record["weights"], record.get("commit")
    initial = read_initial_weights(f"{name.partition('@')[0]}@{commit}" if commit else name)
    if initial.digest != record["xxh3"]:
        raise ChangedError(
            f"init.weights: {record['weights']} has changed (xxh3 {initial.digest}) since the run began "
            f"({record['xxh3']}), and its adapters are for what was there; restore it"
        )
    return initial


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
    return InitRecord(initial.source, initial.digest, len(wanted), new, left_out, initial.license, initial.commit)


def check_trained(model: Network, record: InitRecord | None) -> None:
    """Raises ValueError where a frozen tensor is not from the weights, and so would stay random."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    # Weights in 8 bits are no parameters.
    frozen |= {
        f"{name}.weight" for name, m in model.named_modules() if isinstance(getattr(m, "int8", None), Int8Weight)
    }
    if record and (random := sorted(frozen.intersection(record.new))):
        raise ValueError(f"init.skip leaves {random[0]} at random, and lora does not train it; name it in lora.train")


def init_metadata(record: InitRecord | None, before: dict[str, Any] | None, rank: int) -> dict[str, Any]:
    """What goes into the run's manifests: `record`, which rank 0 prints, or what is there already in that of the
    checkpoint `before`."""
    if record is None:
        return {key: before[key] for key in ("init", "license") if before and key in before}
    if rank == 0:
        print("\n".join(record.lines()), flush=True)
    return {"init": asdict(record)} | ({"license": record.license} if record.license else {})


def _from_folder(location: str, folder: Path) -> InitialWeights:
    config = read_weights_config(folder)
    file = folder / WEIGHTS
    digest = read_manifest(folder)["files"][WEIGHTS]["xxh3"] if (folder / MANIFEST).exists() else hash_file(file)
    license, commit = config.get("license") or "", commit_of(location, folder)
    return InitialWeights(location, digest, config.get("model"), load_file(file), license, commit)


def _from_run(location: str, checkpoint: Path) -> InitialWeights:
    manifest = load.read_manifest(checkpoint)
    if adapters_of(manifest["config"]):
        raise ValueError(f"{location} has trained adapters; make weights of it by launch/convert.py --merge")
    role = "student" if "student" in manifest["roles"] else "model"
    tensors = load.full_tensors(checkpoint, role, "ema")
    license = manifest.get("license", "")
    return InitialWeights(location, hash_file(checkpoint / MANIFEST), manifest["config"]["model"], tensors, license)
