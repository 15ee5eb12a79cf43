"""Names of the released autoencoder, which is Stable Audio's Oobleck, and those of diffusers' AutoencoderOobleck."""

import re
from collections.abc import Mapping

from torch import Tensor

UNIT = {"0": "snake1", "1": "conv1", "2": "snake2", "3": "conv2"}  # of a residual unit
STAGE = {  # of a stage: its layers in their order
    "encoder": ("res_unit1", "res_unit2", "res_unit3", "snake1", "conv1"),
    "decoder": ("snake1", "conv_t1", "res_unit1", "res_unit2", "res_unit3"),
}


def diffusers_name(name: str, stages: int) -> str:
    """The name that diffusers gives to a weight of an autoencoder with so many stages.

    Raises:
        ValueError: this is no name of the released autoencoder.
    """
    found = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)(?:\.layers\.(\d))?(?:\.layers\.(\d))?\.(\w+)", name)
    if not found or int(found[2]) > stages + 2:
        raise ValueError(f"{name}: no tensor of an autoencoder with {stages} stages")
    part, layer, inner, unit, leaf = found[1], int(found[2]), found[3], found[4], found[5]
    outer = {0: "conv1", stages + 1: "snake1", stages + 2: "conv2"}
    if layer in outer:
        return f"{part}.{outer[layer]}.{leaf}"
    path = [part, "block", f"{layer - 1}", STAGE[part][int(inner)], *([UNIT[unit]] if unit else []), leaf]
    return ".".join(path)


def to_diffusers(state: Mapping[str, Tensor], stages: int = 5) -> dict[str, Tensor]:
    """A released state dict without prefix under diffusers' names, with their shapes."""
    renamed = {diffusers_name(name, stages): x for name, x in state.items()}
    return {
        name: x.reshape(1, -1, 1) if name.rsplit(".", 1)[-1] in ("alpha", "beta") else x for name, x in renamed.items()
    }
