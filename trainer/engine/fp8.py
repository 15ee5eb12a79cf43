"""Matrix products of the transformer blocks in 8-bit floats by torchao, with one scale per tensor, computed at every
step."""

import torch
from torch import nn

from ...models.audiox import AudioX

MIN_CAPABILITY = (8, 9)  # compute capability of the first GPUs with such products: Ada, then Hopper
MISSING = "training.fp8: needs torchao, which is not installed: pip install torchao==0.18.0, or set it to false"


def check_fp8() -> None:
    """Raises ValueError if a run cannot use it."""
    try:
        import torchao.float8  # noqa: F401
    except ImportError:
        raise ValueError(MISSING) from None
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < MIN_CAPABILITY:
        raise ValueError(
            f"training.fp8: {torch.cuda.get_device_name()} has no 8-bit products; set it to false, or take a GPU of "
            f"the Ada or Hopper generation or newer"
        )


def use_fp8(model: AudioX) -> None:
    """Convert QKV, output projections and MLPs of all blocks in place. Modulations stay: they have few rows, and
    their values are used in float32. Weights, their names and the optimizer stay the same.

    Without a GPU the rounding is emulated in float32, which shows its effect on training but gains no speed.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    # A weight's gradient sums over tokens, whose number is not a multiple of 16.
    config = Float8LinearConfig(emulate=not torch.cuda.is_available(), pad_inner_dim=True)
    convert_to_float8_training(model.backbone.blocks, module_filter_fn=_fits, config=config)


def _fits(module: nn.Module, name: str) -> bool:
    if not isinstance(module, nn.Linear) or name.endswith("modulation"):
        return False
    return module.in_features % 16 == 0 and module.out_features % 16 == 0
