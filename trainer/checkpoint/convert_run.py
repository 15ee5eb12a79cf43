"""Conversion of a run's checkpoint to inference weights, without DeepSpeed.

model.safetensors   config.json   manifest.json (hashes of the two, and the step)
"""

from pathlib import Path
from typing import Any

import torch

from ...models import strict
from ...models.audiox import WEIGHTS, AudioX
from ...models.config import with_weights_inside
from ...models.networks import Network, network_class
from ...models.weights import load_strict, write_errors
from ..core.files import atomic_output, refuse_existing
from ..core.integrity import MANIFEST, ChangedError, file_entry, file_fault, read_manifest, write_manifest
from . import load
from .load import CheckpointError

FILES = ("config.json", WEIGHTS)


def convert_run(run: Path, out: Path, kind: str = "ema", dtype: str = "fp32", step: int | None = None) -> Path:
    """Writes the weights of a pretraining's model or a distillation's student into the new folder `out`, from the
    newest checkpoint or that of `step`.

    Returns the checkpoint's folder. Raises ValueError if there is no such checkpoint, it is damaged, or `out` exists;
    OSError if the disk is full.
    """
    refuse_existing(out)
    folder = choose_checkpoint(run, step)
    manifest = load.read_manifest(folder)
    config = manifest["config"]
    model = AudioX(config["model"], config["sampling"])
    role = "student" if "student" in manifest["roles"] else "model"
    load_strict(model, load.full_tensors(folder, role, kind))
    if dtype == "bf16":
        model = model.to(torch.bfloat16)
    with atomic_output(out) as partial:
        with write_errors(out):
            model.save_pretrained(partial)
        files = {name: file_entry(partial / name) for name in FILES}
        write_manifest(partial, {"step": manifest["step"], "weights": kind, "dtype": dtype, "files": files})
    return folder


def choose_checkpoint(run: Path, step: int | None) -> Path:
    """The checkpoint to convert. Raises CheckpointError if there is none, or it is damaged."""
    folders = load.list_checkpoints(run)
    if step is not None:
        folders = [f for f in folders if load.step_of(f) == step]
    if not folders:
        of_step = "" if step is None else f" of step {step}"
        raise CheckpointError(f"{run} holds no complete checkpoint{of_step}; is it the folder of a run?")
    fault = load.find_fault(folders[0])
    if fault:
        older = ", ".join(f.name for f in folders[1:]) or "none"
        raise CheckpointError(f"{fault}. Older checkpoints of this run: {older}; take one with --step")
    return folders[0]


def load_weights(folder: Path) -> Network:
    """Loads a weights folder made by `launch/convert.py`, after its files are compared with the hashes in its manifest.
    A folder without a manifest was written by `save_pretrained`, and is loaded as it is.

    Raises ValueError naming what is missing, has changed or does not fit.
    """
    config = read_weights_config(folder)
    try:
        network = network_class(config).from_pretrained(folder)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    network.config = with_weights_inside(network.config, folder)
    return network


def read_weights_config(folder: Path) -> dict[str, Any]:
    """The JSON of a weights folder's `config.json`, after the folder's files are compared with their hashes.

    Raises ValueError naming what is missing or has changed.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder / name} is missing: {folder} is not a weights folder; make one with launch/convert.py"
            )
    if (folder / MANIFEST).exists():
        listed = read_manifest(folder)["files"]
        for name in FILES:
            if fault := file_fault(folder / name, listed[name]) if name in listed else f"{name} is not in {MANIFEST}":
                raise ChangedError(f"{fault}; convert the run again with launch/convert.py, or copy the weights again")
    try:
        config = strict.parse_json((folder / FILES[0]).read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"{FILES[0]} is a {type(config).__name__}; expected an object with the key 'model'")
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return config
