"""Adapters in files, in the format of PEFT: adapter_model.safetensors and adapter_config.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import strict
from .lora import LoraConfig, convolution_difference, linear_difference
from .weights import FLOATS, is_finite, write_errors

ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PREFIX = "base_model.model."  # before every name in PEFT's files
A, B = ".lora_A", ".lora_B"
# Settings of PEFT's that change what an adapter computes, and that are not computed here.
UNKNOWN = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias")
LARGEST_SCALE = 1e6
SHOWN = 200  # characters of what is refused


@dataclass(frozen=True)
class Adapter:
    """An adapter as it lies in a folder."""

    folder: Path
    scale: float  # of B·A
    tensors: dict[str, Tensor]  # by names in the model: A and B of a layer, and tensors that were trained as a whole

    def targets(self) -> set[str]:
        """The weights of the model that it changes."""
        return {_target(name) for name in self.tensors}

    def difference(self, target: str, weight: Tensor) -> Tensor:
        """What it adds to a weight, in float32. Raises ValueError where a part is missing or has another shape."""
        layer = target.removesuffix(".weight")
        if target in self.tensors and layer + A in self.tensors:
            raise ValueError(f"{self.folder}: {layer} has an adapter there, and a weight of its own")
        if target in self.tensors:
            self._check(target, tuple(self.tensors[target].shape), weight)
            return self.tensors[target].float() - weight.float()
        a, b = self._matrix(layer + A), self._matrix(layer + B)
        ranks = {a.ndim, b.ndim, weight.ndim}
        if not (ranks in ({2}, {3}) and a.shape[0] == b.shape[1] and b.shape[2:].numel() == 1):
            shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
            raise ValueError(f"{self.folder}: A and B of {layer} have {shapes}, its weight {tuple(weight.shape)}")
        self._check(target, (b.shape[0], *a.shape[1:]), weight)
        return self.scale * (convolution_difference if a.ndim == 3 else linear_difference)(a.float(), b.float())

    def _matrix(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise ValueError(f"{self.folder}: {name} is missing")
        return self.tensors[name]

    def _check(self, target: str, found: tuple[int, ...], weight: Tensor) -> None:
        if found != tuple(weight.shape):
            raise ValueError(f"{self.folder}: {target} has {found} there, {tuple(weight.shape)} in the model")


def save_adapter(folder: Path, tensors: Mapping[str, Tensor], config: LoraConfig, base: str) -> None:
    """Writes what an adapter's training has trained, by the names in the model; `base` names the weights it is for."""
    layers = sorted(name.removesuffix(A) for name in tensors if name.endswith(A))
    whole = sorted({name.rpartition(".")[0] for name in tensors if not name.endswith((A, B))})
    about = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.scale * config.rank,
        "lora_dropout": 0.0,
        "target_modules": layers,
        "modules_to_save": whole or None,
        "bias": "none",
        "task_type": None,
        "inference_mode": True,
    }
    with write_errors(folder):
        save_file({_stored(name): x.contiguous() for name, x in tensors.items()}, folder / ADAPTER)
        (folder / ADAPTER_CONFIG).write_text(json.dumps(about, indent=1) + "\n")


@torch.no_grad()
def apply_adapters(model: nn.Module, adapters: Sequence[tuple[Path, float]]) -> None:
    """Adds adapters, each with its factor, to the model's weights. All differences are from the weights as they are.

    Raises ValueError naming what is missing, damaged, for another model, or of a kind that is not computed here.
    """
    weights, opened = dict(model.named_parameters()), [(read_adapter(folder), factor) for folder, factor in adapters]
    for adapter, _ in opened:
        if strange := sorted(adapter.targets() - weights.keys()):
            raise ValueError(
                f"{adapter.folder}: {strange[0]!r:.{SHOWN}} is no weight of this model; the adapter is for another one"
            )
    for target in sorted(set().union(*(adapter.targets() for adapter, _ in opened))):
        weight, added = weights[target], [(a, factor) for a, factor in opened if target in a.targets()]
        difference = torch.stack([factor * adapter.difference(target, weight) for adapter, factor in added]).sum(0)
        if not is_finite(difference):
            raise ValueError(f"{added[0][0].folder}: its numbers are too large for {target}")
        weight.add_(difference.to(weight))


def read_adapter(folder: Path) -> Adapter:
    """Raises ValueError where it is none, or is damaged, not finite or of a kind that is not computed here."""
    for name in (ADAPTER, ADAPTER_CONFIG):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: {folder} is no adapter; make one with launch/convert.py")
    try:
        about = strict.parse_json((folder / ADAPTER_CONFIG).read_bytes())
        scale = _scale(about)
        stored = load_file(folder / ADAPTER)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{folder} is no adapter of the kind LoRA, or damaged ({str(error)!r:.{SHOWN}})") from None
    if used := [key for key in UNKNOWN if about.get(key)]:
        raise ValueError(f"{folder}: {used[0]} is {about[used[0]]!r:.{SHOWN}}, which is not computed here")
    for name, tensor in stored.items():
        if tensor.dtype not in FLOATS or not is_finite(tensor):
            raise ValueError(f"{folder}: {name!r:.{SHOWN}} is {tensor.dtype} or not finite")
    return Adapter(folder, scale, {_named(name): tensor for name, tensor in stored.items()})


def _scale(about: dict[str, Any]) -> float:
    if about["peft_type"] != "LORA" or int(about["r"]) < 1:
        raise ValueError(f"it is {about['peft_type']!r} of rank {about['r']!r}")
    scale = float(about["lora_alpha"]) / int(about["r"])
    if not abs(scale) < LARGEST_SCALE:
        raise ValueError(f"lora_alpha is {about['lora_alpha']!r} at rank {about['r']!r}")
    return scale


def _target(name: str) -> str:
    """The weight that one of an adapter's tensors changes."""
    return f"{name.removesuffix(A).removesuffix(B)}.weight" if name.endswith((A, B)) else name


def _stored(name: str) -> str:
    return f"{PREFIX}{name}.weight" if name.endswith((A, B)) else f"{PREFIX}{name}"


def _named(stored: str) -> str:
    name = stored.removeprefix(PREFIX)
    return name.removesuffix(".weight") if name.endswith((f"{A}.weight", f"{B}.weight")) else name
