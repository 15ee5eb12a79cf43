"""Weights by name into a network, none missing and none left over."""

import torch
from torch import Tensor, nn


def load_strict(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load weights by name, none missing and none left over.

    Raises ValueError that names the first few differing keys or both shapes.
    """
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise ValueError(f"the weights do not fit the model: missing {missing[:3]}, not known {extra[:3]}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ValueError(f"{name}: the weights have {tuple(tensor.shape)}, the model {tuple(own[name].shape)}")
    with torch.no_grad():
        model.load_state_dict(state, strict=True)
