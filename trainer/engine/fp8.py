"""Matrix products of the transformer blocks in 8-bit floats by torchao, with a scale a tensor, taken at every step."""

import torch
from torch import nn

from ...models.audiox import AudioX

SMALLEST = (8, 9)  # compute capability of the first GPUs with such products: Ada, then Hopper
MISSING = "training.fp8: needs torchao, which is not installed: pip install torchao==0.18.0, or set it to false"


def check_fp8() -> None:
    """Raises ValueError where a run cannot have it."""
    try:
        import torchao.float8  # noqa: F401
    except ImportError:
        raise ValueError(MISSING) from None
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < SMALLEST:
        raise ValueError(
            f"training.fp8: {torch.cuda.get_device_name()} has no 8-bit products; set it to false, or take a GPU from "
            f"Ada or Hopper on"
        )


def use_fp8(model: AudioX) -> None:
    """Convert QKV, output projections and MLPs of all blocks in place. Modulations stay: they are few rows, and their
    values are used in float32. Weights, their names and the optimizer are as before.

    Without a GPU the rounding is imitated in float32, which shows what training makes of it, at no gain in speed.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    # Tokens are summed over in a weight's gradient, and their number is not a multiple of 16.
    config = Float8LinearConfig(emulate=not torch.cuda.is_available(), pad_inner_dim=True)
    convert_to_float8_training(model.backbone.blocks, module_filter_fn=_fits, config=config)


def _fits(module: nn.Module, name: str) -> bool:
    if not isinstance(module, nn.Linear) or name.endswith("modulation"):
        return False
    return module.in_features % 16 == 0 and module.out_features % 16 == 0
