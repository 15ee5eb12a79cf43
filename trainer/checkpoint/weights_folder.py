"""Loading of a weights folder, here or on the hub.

model.safetensors   config.json   manifest.json (hashes of the two, and the step)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...models import strict
from ...models.adapter_files import ADAPTER, ADAPTER_CONFIG, apply_adapters
from ...models.audiox import WEIGHTS
from ...models.config import with_weights_inside
from ...models.networks import Network, network_class
from ..core.integrity import MANIFEST, ChangedError, file_fault, read_manifest
from .hub import find_folder

FILES = ("config.json", WEIGHTS)


def load_weights(location: Path | str, mapped: bool = False) -> Network:
    """Loads a weights folder made by `launch/convert.py`, or weights of this name on the hub, after the files are
    compared with the hashes in their manifest. A folder without a manifest was written by `save_pretrained`, and is
    loaded as it is. `mapped` leaves the weights in the file, to be copied from.

    Raises ValueError naming what is missing, has changed or does not fit.
    """
    folder = find_folder(location)
    config = read_weights_config(folder)
    try:
        network = network_class(config).from_pretrained(folder, mapped=mapped)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    network.config = with_weights_inside(network.config, folder)
    return network


def load_adapters(model: Network, adapters: Sequence[tuple[Path | str, float]]) -> list[str]:
    """Adds the adapters of folders or names on the hub, each with its factor, to a model's weights. Returns their
    licences.

    Raises ValueError naming what is missing, has changed or does not fit.
    """
    folders = [(find_folder(location), factor) for location, factor in adapters]
    manifests = [_checked_manifest(folder, (ADAPTER_CONFIG, ADAPTER)) for folder, _ in folders]
    apply_adapters(model, folders)
    return [str(manifest["license"]) for manifest in manifests if "license" in manifest]


def read_weights_config(folder: Path) -> dict[str, Any]:
    """The JSON of a weights folder's `config.json`, after the folder's files are compared with their hashes.

    Raises ValueError naming what is missing or has changed.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder / name} is missing: {folder} is not a weights folder; make one with launch/convert.py"
            )
    _checked_manifest(folder, FILES)
    try:
        config = strict.parse_json((folder / FILES[0]).read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"{FILES[0]} is a {type(config).__name__}; expected an object with the key 'model'")
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return config


def _checked_manifest(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """The manifest of a folder, {} for one without. Raises ChangedError where one of these files is not as it says."""
    if not (folder / MANIFEST).exists():
        return {}
    manifest = read_manifest(folder)
    for name in names:
        entry = manifest["files"].get(name)
        if fault := file_fault(folder / name, entry) if entry else f"{name} is not in {MANIFEST}":
            raise ChangedError(f"{fault}; convert the run again with launch/convert.py, or copy the weights again")
    return manifest
