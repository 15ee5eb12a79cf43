"""The device and the precision of frozen encoders: fp32 on a CPU, bf16 products on a GPU."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Runtime:
    """Weights, statistics and whatever is handed out are float32; `dtype` is that of products and convolutions."""

    device: torch.device
    dtype: torch.dtype
    compile: bool = False  # pays where one process encodes many clips, as in launch/prepare.py

    @classmethod
    def for_device(cls, device: torch.device | None = None, compile: bool = False) -> Self:
        """The runtime on `device`, or else on this process's GPU, or else on the CPU; nothing is compiled on a CPU."""
        if device is None:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type != "cuda":
            return cls(device, torch.float32)
        if device.index is None:  # the process's own; another thread of it would get the first of the machine
            device = torch.device("cuda", torch.cuda.current_device())
        return cls(device, torch.bfloat16, compile)

    def frozen(self, module: M) -> M:
        """The module here, in float32, without dropout and gradients."""
        return module.requires_grad_(False).eval().float().to(self.device)

    def autocast(self) -> AbstractContextManager[None]:
        """The products inside are computed in `dtype`."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)
