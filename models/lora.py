"""Low-rank adapters (Hu et al., 2022): a frozen layer's output plus scale·B·A·x, with A (r, in) and B (out, r).

They stand next to the frozen weight in the same module, so that nothing else changes its name.

r rank, B batch, N tokens, C channels.
"""

import math
from dataclasses import dataclass
from fnmatch import filter as matching
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .int8 import Int8Weight, quantized, with_bias
from .strict import PositiveFloat, Size


@dataclass(frozen=True)
class LoraConfig:
    """Adapters of the layers whose names match one of `targets`. Nothing else is trained but what `train` matches."""

    rank: Size
    targets: tuple[str, ...]  # patterns of linear layers and convolutions, as "backbone.blocks.*.qkv"
    alpha: PositiveFloat | None = None  # the scale is alpha / rank; None: 1
    train: tuple[str, ...] = ()  # patterns of other tensors that are trained as a whole
    int8: bool = False  # the frozen weights of the blocks in 8 bits

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


class LoraLinear(nn.Linear):
    """(…, in) -> (…, out)."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.scale = layer.in_features, layer.out_features, scale
        self.weight, self.bias = layer.weight, layer.bias
        self.int8: Int8Weight | None = None  # in the place of the weight
        like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.lora_A = nn.Parameter(torch.empty(rank, layer.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, rank, **like))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        frozen = super().forward(x) if self.int8 is None else with_bias(self.int8.linear(x), self.bias)
        return frozen + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def difference(self) -> Tensor:
        """What the adapter adds to the weight."""
        return self.scale * linear_difference(self.lora_A, self.lora_B)


class LoraConv1d(nn.Conv1d):
    """(B, in, N) -> (B, out, N): A is a convolution like the layer's, B one over single positions, as in PEFT."""

    def __init__(self, layer: nn.Conv1d, rank: int, scale: float) -> None:
        like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        kernel, padding = layer.kernel_size[0], layer.padding[0]
        with torch.device("meta"):
            super().__init__(
                layer.in_channels, layer.out_channels, kernel, padding=padding, bias=layer.bias is not None
            )
        self.scale = scale
        self.weight, self.bias = layer.weight, layer.bias
        self.int8: Int8Weight | None = None  # in the place of the weight
        self.lora_A = nn.Parameter(torch.empty(rank, layer.in_channels, kernel, **like))
        self.lora_B = nn.Parameter(torch.zeros(layer.out_channels, rank, 1, **like))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        low = F.conv1d(x, self.lora_A, padding=self.padding)
        if self.int8 is None:
            frozen = super().forward(x)
        else:
            frozen = with_bias(self.int8.conv1d(x, int(self.padding[0])), self.bias, 1)
        return frozen + self.scale * F.conv1d(low, self.lora_B)

    def difference(self) -> Tensor:
        """What the adapter adds to the weight."""
        return self.scale * convolution_difference(self.lora_A, self.lora_B)


LoraLayer = LoraLinear | LoraConv1d


def linear_difference(a: Tensor, b: Tensor) -> Tensor:
    """A (r, in), B (out, r) -> (out, in)."""
    return b @ a


def convolution_difference(a: Tensor, b: Tensor) -> Tensor:
    """A (r, in, kernel), B (out, r, 1) -> (out, in, kernel)."""
    return torch.einsum("or,rik->oik", b[..., 0], a)


def add_adapters(model: nn.Module, config: LoraConfig) -> list[str]:
    """Puts adapters into the model, which at first change nothing, and freezes all that is not to be trained; with
    `int8` the frozen weights of its blocks are in 8 bits then. Returns the names of the layers that have an adapter.

    Raises ValueError for a pattern that matches nothing, or a layer that can have none.
    """
    modules, names = dict(model.named_modules()), []
    for pattern in config.targets:
        found = [n for n, m in modules.items() if fnmatchcase(n, pattern) and isinstance(m, nn.Linear | nn.Conv1d)]
        if not found:
            raise ValueError(f"lora.targets: {pattern!r} matches no linear layer or convolution of the model")
        names += [name for name in found if name not in names]
    parameters = [name for name, _ in model.named_parameters()]
    weights = {f"{name}.weight" for name in names}
    for pattern in config.train:
        found = matching(parameters, pattern)
        if not found:
            raise ValueError(f"lora.train: {pattern!r} matches no tensor of the model")
        if both := sorted(weights.intersection(found)):
            raise ValueError(f"lora.train: {pattern!r} matches {both[0]}, whose layer has an adapter; one of the two")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in config.train))
    for name in names:
        parent, _, own = name.rpartition(".")
        setattr(modules[parent], own, adapted(modules[name], config.rank, config.scale, name))
    if config.int8:
        for block in model.backbone.blocks:  # type: ignore[union-attr]
            _quantize(block)
    return names


def _quantize(parent: nn.Module) -> None:
    """The frozen weights below a module, in place."""
    for name, module in parent.named_children():
        if isinstance(module, LoraLinear | LoraConv1d):
            module.int8 = Int8Weight(module.weight)
            module.register_parameter("weight", None)
        elif layer := quantized(module):
            setattr(parent, name, layer)
        else:
            _quantize(module)


def adapted(layer: nn.Module, rank: int, scale: float, name: str) -> LoraLayer:
    """The layer with an adapter. Raises ValueError where it can have none."""
    if type(layer) is nn.Conv1d:
        if layer.stride != (1,) or layer.groups != 1 or layer.dilation != (1,):
            raise ValueError(f"lora.targets: {name} is a convolution with strides, groups or dilation; leave it out")
        return LoraConv1d(layer, rank, scale)
    if type(layer) is nn.Linear:
        return LoraLinear(layer, rank, scale)
    raise ValueError(f"lora.targets: {name} is a {type(layer).__name__}, which computes in its own way; leave it out")


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Adds every adapter to its weight and takes it out."""
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, LoraLinear | LoraConv1d):
            parent, _, own = name.rpartition(".")
            weight = nn.Parameter(module.weight + module.difference().to(module.weight.dtype), False)
            setattr(modules[parent], own, _plain(module, weight))


def _plain(module: LoraLayer, weight: nn.Parameter) -> nn.Linear | nn.Conv1d:
    with torch.device("meta"):
        layer: nn.Linear | nn.Conv1d
        if isinstance(module, LoraLinear):
            layer = nn.Linear(module.in_features, module.out_features, module.bias is not None)
        else:
            kernel, padding = module.kernel_size[0], module.padding[0]
            layer = nn.Conv1d(
                module.in_channels, module.out_channels, kernel, padding=padding, bias=module.bias is not None
            )
    layer.weight, layer.bias = weight, module.bias
    return layer
