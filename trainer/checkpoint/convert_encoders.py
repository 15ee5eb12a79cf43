"""Conversion of released encoder weights from pickles to safetensors, once and for all.

This is the only place that unpickles anything, and only tensors: everything else in a pickle is refused.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...models.encoders.released import from_released
from ...models.encoders.synchformer import CONFIG, WEIGHTS, Synchformer, SynchformerConfig
from ...models.scorers.build import network_of, under_own_names
from ...models.weights import load_strict, write_errors
from ..core.files import atomic_output, refuse_existing

VISION = "vision_model."  # CLIP's image encoder among its weights


def convert_synchformer(file: Path, out: Path, config: SynchformerConfig | None = None) -> int:
    """Writes the visual branch of Synchformer's released file into the new folder `out`.

    Returns the number of parameters. Raises ValueError if it is another file or `out` exists.
    """
    config = config or SynchformerConfig()
    refuse_existing(out)
    state = unpickled(file)
    with torch.device("meta"):
        model = Synchformer(config)
    try:
        weights = from_released(state, config)
        load_strict(model, {name: tensor.to("meta") for name, tensor in weights.items()})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    _write_weights(
        out, weights, lambda folder: (folder / CONFIG).write_text(json.dumps(asdict(config), indent=1) + "\n")
    )
    return sum(tensor.numel() for tensor in weights.values())


def convert_clip(file: Path, out: Path) -> int:
    """Writes the image encoder of a `pytorch_model.bin` of transformers' CLIP, and the config.json from its folder,
    into the new folder `out`.

    Returns the number of parameters. Raises ValueError if it is another file or `out` exists.
    """
    refuse_existing(out)
    config = file.with_name(CONFIG)
    if not config.is_file():
        raise ValueError(f"{config} is missing; it belongs to the weights, get it from where {file.name} came from")
    # Old files also hold a list of positions, which is not a weight.
    weights = {n: t for n, t in unpickled(file).items() if n.startswith(VISION) and t.is_floating_point()}
    if not weights:
        raise ValueError(f"{file}: holds no weights named {VISION}*; is it CLIP's pytorch_model.bin?")
    _write_weights(out, weights, lambda folder: shutil.copy(config, folder / CONFIG))
    return sum(tensor.numel() for tensor in weights.values())


def convert_scorer(file: Path, out: Path, kind: str) -> int:
    """Writes what is used of the released file of a network that judges sound into the new folder `out`.

    Returns the number of parameters. Raises ValueError if it is another file or `out` exists.
    """
    refuse_existing(out)
    state = unpickled(file, ("model", "state_dict"), "docs/evaluation.md")
    try:
        state = under_own_names(kind, state)
        with torch.device("meta"):
            model = network_of(kind, state)
        load_strict(model, {name: tensor.to("meta") for name, tensor in state.items()})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    _write_weights(out, state, lambda folder: None)
    return sum(tensor.numel() for tensor in state.values())


def unpickled(
    file: Path, sections: Sequence[str] = ("model",), document: str = "docs/encoders.md"
) -> dict[str, Tensor]:
    """The tensors of a file of `torch.save`, by name, or those under the first of `sections` that it has. They stay on
    the disk until they are used.

    Raises ValueError if they are anything but tensors, or it is not such a file.
    """
    if not file.is_file():
        raise ValueError(f"{file} is not a file; {document} says where the released weights are")
    try:
        data = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # damage raises many kinds of errors
        lines = str(error).strip().split("\n")
        reason = next((line for line in lines if "Unsupported" in line), lines[0]).strip()[:200]
        raise ValueError(
            f"{file}: cannot be read as tensors alone ({reason}); take the file that {document} names"
        ) from None
    if isinstance(data, dict):
        data = next((data[key] for key in sections if isinstance(data.get(key), dict)), data)
    if not isinstance(data, dict):
        raise ValueError(f"{file}: holds {type(data).__name__}, not named tensors; take the file that {document} names")
    for name, tensor in data.items():
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise ValueError(f"{file}: {name} is a {kind}, not a tensor; take the file that {document} names")
    return data


def _write_weights(out: Path, weights: dict[str, Tensor], add_config: Callable[[Path], object]) -> None:
    with atomic_output(out) as partial:
        partial.mkdir()
        with write_errors(out):
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial / WEIGHTS)
        add_config(partial)
