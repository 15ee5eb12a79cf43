"""Weights by name into a network, none missing and none left over."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def load_strict(model: nn.Module, state: dict[str, Tensor], assign: bool = False) -> None:
    """Load weights by name, none missing and none left over. `assign` puts these very tensors into the model, which may
    be on the meta device, in place of copying them.

    Raises ValueError that names the first few differing keys, both shapes, or a weight that is no finite float.
    """
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise ValueError(f"the weights do not fit the model: missing {missing[:3]}, not known {extra[:3]}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ValueError(f"{name}: the weights have {tuple(tensor.shape)}, the model {tuple(own[name].shape)}")
        if own[name].is_floating_point() and tensor.dtype not in FLOATS:
            raise ValueError(f"{name}: the weights are {tensor.dtype}; expected {', '.join(map(str, FLOATS))}")
        if not is_finite(tensor):
            raise ValueError(f"{name}: the weights are not finite; they are damaged, or their training diverged")
    with torch.no_grad():
        model.load_state_dict(state, strict=True, assign=assign)


def is_finite(tensor: Tensor) -> bool:
    """One pass without a temporary tensor: an extreme is NaN if any value is."""
    if tensor.is_meta or not (tensor.numel() and tensor.is_floating_point()):
        return True
    return bool(torch.stack(tensor.aminmax()).isfinite().all())


def float32_copy(model: M, device: torch.device) -> M:
    """A model with float32 tensors of its own on `device`. Each is copied straight there, so that the host needs no
    memory for it; those of `model` may lie in a file, which is then read one by one."""
    copies: dict[int, Any] = {id(buffer): _float32(buffer, device) for buffer in model.buffers()}
    for parameter in model.parameters():
        copies[id(parameter)] = nn.Parameter(_float32(parameter.detach(), device), parameter.requires_grad)
    return copy.deepcopy(model, copies).to(device)  # moves constants, which are neither


def sharing_copy(model: M) -> M:
    """A model of its own structure, in training, with the same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).train()


def _float32(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn safetensors' own error of a file that cannot be written into an OSError with its name."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path}: the weights cannot be written; is the disk full? ({error})") from error
