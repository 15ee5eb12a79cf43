"""The MLP of the blocks of PaSST and ImageBind; its names are those of both releases."""

import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """(..., D) -> (..., D), four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out
