"""Conversion of a run's checkpoint, without DeepSpeed: to a weights folder (weights_folder.py), or if the run trained
adapters to a folder in PEFT's format (models/adapter_files.py).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models import strict
from ...models.adapter_files import save_adapter
from ...models.lora import LoraConfig, add_adapters, merge_adapters
from ...models.networks import Network, network_class
from ...models.weights import load_strict, write_errors
from ..core.config import InitConfig
from ..core.files import atomic_output, refuse_existing
from ..core.integrity import file_entry, write_manifest
from . import load
from .initial_weights import adapters_of, begin_from, read_recorded_weights
from .licences import write_license
from .load import choose_checkpoint
from .model_card import CARD

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def convert_run(
    run: Path,
    out: Path,
    kind: str = "ema",
    dtype: str = "fp32",
    step: int | None = None,
    merge: bool = False,
    best: bool = False,
) -> Path:
    """Writes what a run has trained into the new folder `out`, from the newest checkpoint, that of `step` or the
    `best`: the weights of a pretraining's model or a distillation's student. If the run trained adapters, that is what
    it writes; with `merge` the weights that the run began from, with the adapters added.

    Returns the checkpoint's folder. Raises ValueError if there is no such checkpoint, it is damaged, `out` exists, or
    the weights that adapters belong to have changed; OSError if the disk is full.
    """
    refuse_existing(out)
    folder = choose_checkpoint(run, step, best)
    manifest = load.read_manifest(folder)
    role = "student" if "student" in manifest["roles"] else "model"
    tensors = load.full_tensors(folder, role, kind)
    config = manifest["config"]
    lora = adapters_of(config)
    if merge and not lora:
        raise ValueError(f"--merge: {run} has trained all weights, not adapters; convert it without")
    about = {"step": manifest["step"], "weights": kind, "dtype": dtype} | _provenance(manifest)
    if lora:
        tensors = {name: tensors[name] for name in manifest["roles"][role]["shapes"]}  # no constants
    if lora and not merge:
        adapter, base = lora, manifest["init"]["weights"]
        cast = {name: x.to(DTYPES[dtype]) for name, x in tensors.items()}
        _write(out, manifest, about, lambda folder: save_adapter(folder, cast, adapter, base))
        return folder
    network = partial(network_class(config), config["model"], config["sampling"], manifest.get("license", ""))
    if lora:
        model = network()
        _merge(model, manifest, lora, tensors)
    else:
        with torch.device("meta"):
            model = network()
        load_strict(model, tensors, assign=True)
    _write(out, manifest, about, lambda folder: model.to(DTYPES[dtype]).save_pretrained(folder))
    return folder


def _provenance(manifest: dict[str, Any]) -> dict[str, Any]:
    """For a model card: the names of the streams with their tasks, and the weights that the run began from."""
    streams = manifest["config"]["data"]["streams"]
    about: dict[str, Any] = {"data": [{"stream": Path(s["path"]).name, "tasks": s["tasks"]} for s in streams]}
    if init := manifest.get("init"):
        about |= {"base": init["weights"], "base_xxh3": init["xxh3"], "base_commit": init.get("commit", "")}
    return about


def _merge(model: Network, manifest: dict[str, Any], lora: LoraConfig, trained: dict[str, Tensor]) -> None:
    """The weights that a run began from, with what it trained. Raises ValueError where they have changed since."""
    begin_from(
        model, read_recorded_weights(manifest["init"]), strict.parse(InitConfig, manifest["config"]["init"], "init")
    )
    add_adapters(model, replace(lora, int8=False))  # added to the weights as they were before they had 8 bits
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in trained.items():
            parameters[name].copy_(tensor)
    merge_adapters(model)


def _write(out: Path, manifest: dict[str, Any], about: dict[str, Any], save: Callable[[Path], object]) -> None:
    """A folder of what `save` writes, with the run's licence and hashes of all."""
    with atomic_output(out) as folder:
        folder.mkdir()
        with write_errors(out):
            save(folder)
        (folder / CARD).unlink(missing_ok=True)  # huggingface_hub's, which knows nothing of the run
        if license := manifest.get("license", ""):
            write_license(folder, license)
            about = about | {"license": license}
        files = {file.name: file_entry(file) for file in sorted(folder.iterdir())}
        write_manifest(folder, about | {"files": files})
