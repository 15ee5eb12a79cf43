"""Names of the released autoencoder, which is Stable Audio's Oobleck, and those of diffusers' AutoencoderOobleck."""

from collections.abc import Mapping

from torch import Tensor, nn

UNIT = ("snake1", "conv1", "snake2", "conv2")  # the layers of a residual unit, in their order
STAGE = {  # of a stage
    "encoder": ("res_unit1", "res_unit2", "res_unit3", "snake1", "conv1"),
    "decoder": ("snake1", "conv_t1", "res_unit1", "res_unit2", "res_unit3"),
}


def released_name(name: str, stages: int) -> str:
    """The released name of a tensor of diffusers' autoencoder with so many stages."""
    part, *path, leaf = name.split(".")
    if path[0] == "block":
        layers = [int(path[1]) + 1, STAGE[part].index(path[2]), *(UNIT.index(unit) for unit in path[3:])]
    else:
        layers = [{"conv1": 0, "snake1": stages + 1, "conv2": stages + 2}[path[0]]]
    return ".".join((part, *(f"layers.{i}" for i in layers), leaf))


def autoencoder_shapes(autoencoder: nn.Module, stages: int = 5) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor under its released name; those of activations are vectors there."""
    shapes = {released_name(name, stages): tuple(x.shape) for name, x in autoencoder.state_dict().items()}
    return {name: shape[1:2] if _of_activation(name) else shape for name, shape in shapes.items()}


def to_diffusers(state: Mapping[str, Tensor], autoencoder: nn.Module, stages: int = 5) -> dict[str, Tensor]:
    """A released state dict under the names and with the shapes of diffusers' autoencoder."""
    renamed = {name: state[released_name(name, stages)] for name in autoencoder.state_dict()}
    return {name: x.reshape(1, -1, 1) if _of_activation(name) else x for name, x in renamed.items()}


def _of_activation(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in ("alpha", "beta")
