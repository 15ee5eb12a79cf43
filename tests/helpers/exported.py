"""Networks whose answers are known, as files in TorchScript and ONNX."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


class Loudness(nn.Module):
    """(B, n) -> (B, 2): mean power, and its negative."""

    def forward(self, wave: Tensor) -> Tensor:
        power = wave.square().mean(dim=1)
        return torch.stack((power, -power), dim=1)


class LoudAndQuiet(nn.Module):
    """(B, n) -> (B, 2): probabilities that it is loud, a mean power above 0.02, and that it is quiet."""

    def forward(self, wave: Tensor) -> Tensor:
        loud = (wave.square().mean(dim=1) > 0.02).float()
        return torch.stack((loud, 1 - loud), dim=1)


class Level(nn.Module):
    """(B, n) -> (B, 1): ten times the level of a tone."""

    def forward(self, wave: Tensor) -> Tensor:
        return 10 * (2 * wave.square().mean(dim=1, keepdim=True)).sqrt()


class Offset(nn.Module):
    """(B, n) -> (B, 1): ten times the mean of the samples, and a half."""

    def forward(self, wave: Tensor) -> Tensor:
        return 0.5 + 10 * wave.mean(dim=1, keepdim=True)


class Tags(nn.Module):
    """(B, n) at 16 kHz -> (B, 527): speech (0) is above about 760 Hz; music (137) is all else, and what is loud."""

    def forward(self, wave: Tensor) -> Tensor:
        steepness = wave.diff(dim=1).abs().mean(dim=1, keepdim=True) / wave.abs().mean(dim=1, keepdim=True)
        high = (steepness > 0.3).float()
        loud = (wave.square().mean(dim=1, keepdim=True) > 0.2).float()
        rest = 0 * high
        return torch.cat((high, rest.expand(-1, 136), torch.maximum(1 - high, loud), rest.expand(-1, 389)), dim=1)


class MeanBrightness(nn.Module):
    """(B, M, 3, size, size) -> (B, 1)"""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.mean(dim=(1, 2, 3, 4))[:, None]


class Nearness(nn.Module):
    """(B, 1), (B, 1) -> (B, 1): of ten times a brightness and a level."""

    def forward(self, heard: Tensor, seen: Tensor) -> Tensor:
        return 1 - 2 * (heard / 10 - seen).abs()


class Distance(nn.Module):
    """(B, 1), (B, 1) -> (B, 1): twice that of the first from one half, whatever the second is."""

    def forward(self, heard: Tensor, seen: Tensor) -> Tensor:
        return 2 * (heard - 0.5).abs() + 0 * seen


class Brightness(nn.Module):
    """(N, 3, size, size) -> (N, 1)"""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.mean(dim=(1, 2, 3))[:, None]


class HalfAndRest(nn.Module):
    """(B, channels, n) -> (B, 2, channels, n): a quarter of the sound, and the rest of it. Of a quiet sound the first
    has nothing."""

    def forward(self, wave: Tensor) -> Tensor:
        loud = (wave.abs().amax(dim=(1, 2), keepdim=True) > 0.1).float()
        part = 0.25 * wave * loud
        return torch.stack((part, wave - part), dim=1)


def export(module: nn.Module, path: Path, *shape: int) -> str:
    """Write the module of one input as TorchScript or ONNX, by the ending, for any number of rows and of samples."""
    return export_of(module, path, torch.zeros(shape))


def export_of(module: nn.Module, path: Path, *inputs: Tensor) -> str:
    """The same of any number of inputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch recommends torch.export instead
        return _export(module, path, *inputs)


def _export(module: nn.Module, path: Path, *inputs: Tensor) -> str:
    if path.suffix == ".onnx":
        names = [f"x{i}" for i in range(len(inputs))]
        axes = {name: {0: "rows", x.ndim - 1: "n"} for name, x in zip(names, inputs, strict=True)}
        torch.onnx.export(module, inputs, path, dynamo=False, input_names=names, dynamic_axes=axes)
    else:
        torch.jit.trace(module, inputs).save(str(path))
    return str(path)
