"""Traces of ZeRO-3, one for each kind of pass. Does not import DeepSpeed.

DeepSpeed records in which order a model's weights are used from one forward pass to the next, and from then on gathers
them ahead of use. It has one such trace per model, and discards it when a pass differs: a distillation runs its models
with and without a backward pass, to the weights or to the inputs, and the discriminator's trunk stops after a few
blocks. Then every gather is waited for. Passes of one kind are always the same.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

Kind = tuple[Any, ...]


class GatherTraces:
    """Gives each kind of a model's passes a trace of its own. `offload` is the DeepSpeedZeRoOffload of the model."""

    def __init__(self, model: nn.Module, offload: Any) -> None:
        self.offload = offload
        self.unused = offload.get_param_coordinator()  # has not traced anything, and never will
        self.coordinators: dict[Kind, Any] = {}
        self.discarded = 0  # passes that differed from the trace of their kind
        # Before the hook with which DeepSpeed begins a trace.
        model.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True)

    def _begin(self, model: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        gradient = torch.is_grad_enabled()
        to_inputs = gradient and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
        kind = gradient, to_inputs, *sorted(options.items())
        if kind in self.coordinators:
            self.discarded += self.coordinators[kind].is_invalid_trace()
        else:
            self.coordinators[kind] = copy.copy(self.unused)
            self.coordinators[kind]._clear_trace_structures()  # lists that would be shared
        self.offload.param_coordinator = self.coordinators[kind]
