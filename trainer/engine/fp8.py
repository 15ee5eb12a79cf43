"""Matrix products of the transformer blocks in 8-bit floats, with scales computed at every step: by torchao with one
per tensor, or, where a norm or SwiGLU comes before a product, by ours with one per token (kernels/fp8_linear.py)."""

from dataclasses import replace

import torch
from torch import nn

from ...kernels.fp8_linear import Fp8Linear, Gated, Modulated, gated_residual_then_modulated
from ...models.blocks import Stream
from ...models.networks import Network
from ...models.released.audiox import ReleasedAudioX
from ..core.config import LoopConfig

MIN_CAPABILITY = (8, 9)  # compute capability of the first GPUs with such products: Ada, then Hopper
MISSING = "training.fp8: needs torchao, which is not installed: pip install torchao==0.18.0, or set it to false"


def check_fp8(training: LoopConfig) -> None:
    """Raises ValueError if a run asks for it and cannot use it."""
    if training.fp8_rows and not training.fp8:
        raise ValueError("training.fp8_rows: true needs training.fp8: true; set both, or neither")
    if not training.fp8:
        return
    try:
        import torchao.float8  # noqa: F401
    except ImportError:
        raise ValueError(MISSING) from None
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < MIN_CAPABILITY:
        raise ValueError(
            f"training.fp8: {torch.cuda.get_device_name()} has no 8-bit products; set it to false, or take a GPU of "
            f"the Ada or Hopper generation or newer"
        )


def use_fp8(model: Network, rows: bool = False) -> None:
    """Convert QKV, output projections and MLPs of all blocks in place. Modulations stay: they have few rows, and
    their values are used in float32. Weights, their names and the optimizer stay the same. With `rows` the norms and
    SwiGLU write the inputs of QKV and MLPs in 8 bits themselves.

    Without a GPU the rounding is emulated in float32, which shows its effect on training but gains no speed.
    """
    if isinstance(model, ReleasedAudioX):
        raise ValueError(
            "training.fp8: the released network's products are convolutions, which torchao leaves as they are; set it "
            "to false"
        )
    if rows:
        for module in model.backbone.blocks.modules():
            if isinstance(module, Stream):
                use_rows(module)
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    # A weight's gradient sums over tokens, whose number is not a multiple of 16.
    config = Float8LinearConfig(emulate=not torch.cuda.is_available(), pad_inner_dim=True)
    convert_to_float8_training(model.backbone.blocks, module_filter_fn=_fits, config=config)


def _fits(module: nn.Module, name: str) -> bool:
    if not isinstance(module, nn.Linear) or isinstance(module, Fp8Linear) or name.endswith("modulation"):
        return False
    return module.in_features % 16 == 0 and module.out_features % 16 == 0


def use_rows(stream: Stream) -> None:
    """Let a stream's norms and SwiGLU write 8 bits. Raises ValueError if the widths are no multiples of 16."""
    holders = [(stream, "qkv"), *([] if stream.last else [(stream.mlp, "up"), (stream.mlp, "down")])]
    for holder, name in holders:
        linear = getattr(holder, name)
        if linear.in_features % 16 or linear.out_features % 16:
            raise ValueError(
                f"training.fp8_rows: a product of {linear.in_features} by {linear.out_features}; both have to be "
                f"multiples of 16: change model.backbone's width or mlp_hidden, or set it to false"
            )
        layer = Fp8Linear(linear.in_features, linear.out_features, bias=False, device="meta")
        layer.weight = linear.weight
        setattr(holder, name, layer)
    stream.ops = replace(
        stream.ops,
        layer_norm_modulate=Modulated,
        gated_residual_layer_norm_modulate=gated_residual_then_modulated,
    )
    if not stream.last:
        stream.mlp.ops = replace(stream.mlp.ops, swiglu=Gated)
