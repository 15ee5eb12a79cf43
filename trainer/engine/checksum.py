"""Exact checksums of tensors: integer sums over their bits, which do not depend on the order of summation.

A flipped bit always changes them. They stay on the device, so nobody waits for them.
"""

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ...models.int8 import int8_tensors

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def checksum(tensors: Sequence[Tensor]) -> Tensor:
    """One int64 for these tensors in this order, on their device."""
    return combined([sum_of_bits(t) for t in tensors])


def combined(sums: Sequence[Tensor]) -> Tensor:
    """Their sum modulo 2^64 with odd factors of their own, so that a change of any one of them changes it."""
    table = torch.stack(list(sums))
    return (table * torch.arange(1, 2 * len(table), 2, device=table.device)).sum()


@torch.no_grad()
def sum_of_bits(tensor: Tensor) -> Tensor:
    """The bits as integers of 8 bytes if the tensor divides into these, otherwise of its own size, added up."""
    flat = tensor.detach().contiguous().view(-1)
    size = flat.element_size()
    divides = flat.numel() * size % 8 == 0 and flat.storage_offset() * size % 8 == 0
    return flat.view(torch.int64 if divides else INTEGERS[size]).sum(dtype=torch.int64)


def replicated_weights(module: nn.Module) -> list[Tensor]:
    """The weights that every rank has whole, which are all of them below ZeRO stage 3 and none there."""
    return [*(p.data for p in module.parameters() if not hasattr(p, "ds_id")), *int8_tensors(module)]


def gradient_checksum(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """The checksum of a loss's gradient, of which no parameter learns. Each part of it is added up when it arises and
    then dropped, so it takes no memory."""
    parameters = [p for p in parameters if p.requires_grad]
    sums = [torch.zeros((), dtype=torch.int64, device=loss.device) for _ in parameters]

    def add(index: int, gradient: Tensor) -> Tensor:
        sums[index] = sum_of_bits(gradient)
        return gradient.new_zeros(()).expand_as(gradient)  # the same shape in a few bytes

    hooks = [p.register_hook(partial(add, index)) for index, p in enumerate(parameters)]
    try:
        torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    return combined(sums)
