"""The video encoder of Diff-Foley's contrastive pretraining, CAVP (Luo et al., 2023): a ResNet-50 over pictures, whose
last two stages also see the neighbours of a picture. Names as in the release.

B clips, M pictures, D channels, E embedding.
"""

import re

import torch.nn.functional as F
from torch import Tensor, nn

FRAMES, SIZE = 4.0, 224  # pictures per second; pixels, to which pictures are squeezed
DEPTHS, IN_TIME = (3, 4, 6, 3), (False, False, True, True)  # of the stages: blocks, and whether these see neighbours
EXPANSION = 4
UNUSED = re.compile(r"(spec_encoder\.|logit_scale$)")


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Released weights without the branch for sound, and without the prefix of a parallel training."""
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in plain.items() if not UNUSED.match(name)}


class NormedConv(nn.Module):
    """A convolution with the normalisation after it."""

    def __init__(self, channels: int, width: int, kernel: tuple[int, int, int], stride: int = 1) -> None:
        """`stride` of height and width."""
        super().__init__()
        padding = kernel[0] // 2, kernel[1] // 2, kernel[2] // 2
        self.conv = nn.Conv3d(channels, width, kernel, (1, stride, stride), padding, bias=False)
        self.bn = nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(x))
        return out


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, in_time: bool) -> None:
        super().__init__()
        self.conv1 = NormedConv(channels, width, (3 if in_time else 1, 1, 1))
        self.conv2 = NormedConv(width, width, (1, 3, 3), stride)
        self.conv3 = NormedConv(width, EXPANSION * width, (1, 1, 1))
        changes = stride != 1 or channels != EXPANSION * width
        self.downsample = NormedConv(channels, EXPANSION * width, (1, 1, 1), stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, M, y, x)"""
        out = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class PictureResnet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = NormedConv(3, width, (1, 7, 7), 2)
        channels = width
        for i, (depth, in_time) in enumerate(zip(DEPTHS, IN_TIME, strict=True)):
            stage = []
            for j in range(depth):
                stage.append(Bottleneck(channels, width << i, 2 if i and not j else 1, in_time))
                channels = EXPANSION * (width << i)
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, M, SIZE, SIZE) in [0, 1] -> (B, M, D)."""
        x = F.max_pool3d(F.relu(self.conv1(x)), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        for i in range(len(DEPTHS)):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return x.mean(dim=(3, 4)).transpose(1, 2)


class Cavp(nn.Module):
    """Pictures to one embedding each, of length 1."""

    def __init__(self, width: int = 64, embedding: int = 512) -> None:
        super().__init__()
        self.video_encoder = PictureResnet(width)
        self.video_project_head = nn.Linear(EXPANSION * (width << 3), embedding)

    @classmethod
    def of_weights(cls, state: dict[str, Tensor]) -> "Cavp":
        """The network with the sizes of weights. Raises KeyError where one that tells a size is missing."""
        return cls(state["video_encoder.conv1.conv.weight"].shape[0], state["video_project_head.weight"].shape[0])

    def forward(self, pictures: Tensor) -> Tensor:
        """(M, 3, SIZE, SIZE) uint8 -> (M, E)."""
        clip = (pictures.float() / 255).transpose(0, 1)[None]
        return F.normalize(self.video_project_head(self.video_encoder(clip))[0], dim=-1)
